# Sourced by the scripts that work for a target: looks one up in cross/targets.
# shellcheck shell=bash disable=SC2034 # what is set is for who sources this

# Sets name, triple, debian, gnu, qemu, loader, glibc, dist, small of a target by its name or triple, and what follows from them:
# compiler, prefix of its tools, the Debian packages of both, the folder of the target's libc.
target() {
    local wanted=$1
    while read -r name triple debian gnu qemu loader glibc dist small; do
        [[ $name != "#"* && ( $name = "$wanted" || $triple = "$wanted" ) ]] || continue
        if [ "$gnu" = "$(uname -m)-linux-gnu" ]; then
            tools=
            libc=/
            compiler_packages=(gcc libc6-dev)
        else
            tools=$gnu-
            libc=/usr/$gnu
            compiler_packages=("gcc-${gnu//_/-}" "libc6-dev-$debian-cross")
        fi
        return 0
    done <"$(dirname "${BASH_SOURCE[0]}")/targets"
    echo "${0##*/}: no target $wanted: $(sed -n 's/^\([a-z][a-z0-9_]*\) .*/\1/p' "$(dirname "${BASH_SOURCE[0]}")/targets" | xargs)" >&2
    exit 2
}

# Two builds of one state of the source agree on the time, wherever a tool asks for it.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$(dirname "${BASH_SOURCE[0]}")" log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
