# shellcheck shell=bash disable=SC2154 # tests that source this have a folder of their own in $work
# Sourced by the scripts below tests/ that check a whole system step by step: what is checked, waiting, what a command said.

checks=0
now=
began=0

# Begins a check; the one before it passed.
check() {
    passed
    now=$*
    began=$SECONDS
}
# Ends the last one.
passed() {
    [ "$now" = "" ] || { printf 'ok    %s (%d s)\n' "$now" $((SECONDS - began)); checks=$((checks + 1)); }
    now=
}
# Says why the check fails, a line each, and ends the script.
fail() {
    printf '      %s\n' "$@"
    exit 1
}

# Waits until a command succeeds: seconds, command.
until_done() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || { echo "not in time: $*"; return 1; }
        sleep 0.1
    done
}

# Runs a command whose output is of interest only when it fails, or to `says`.
quietly() { "$@" >"$work/answer" 2>&1 || { cat "$work/answer"; return 1; }; }
says() { grep -q -- "$1" "$work/answer" || { echo "no $1 in:"; cat "$work/answer"; return 1; }; }
# The first value of a field in JSON.
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }

# A minimal Debian 12 with these packages (PACKAGE,PACKAGE) as an archive in a folder, made once; prints its path.
debian_root() {
    local archive
    archive=$1/root-$(echo "bookworm $2" | sha256sum | cut -c1-8).tar
    if [ ! -s "$archive" ]; then
        echo "making a Debian root file system in $archive" >&2
        mkdir -p "$1"
        mmdebstrap --quiet --format=tar --variant=minbase --include="$2" bookworm "$archive.part" >&2
        mv "$archive.part" "$archive"
    fi
    echo "$archive"
}
