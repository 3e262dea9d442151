SUMMARY = "Signed releases that come with the image of a Farlight device"
DESCRIPTION = "The folder of `farlight release export` that FARLIGHT_BUNDLE names, and a service that has the agent install its \
releases, with all checks, as soon as the device is enrolled and where it has none yet."
# Of the models, which are the user's own.
FARLIGHT_BUNDLE_LICENSE ?= "CLOSED"
LICENSE = "${FARLIGHT_BUNDLE_LICENSE}"

BUNDLE = "${@os.path.realpath(d.getVar('FARLIGHT_BUNDLE')) if d.getVar('FARLIGHT_BUNDLE') else ''}"
SKIP_RECIPE[farlight-bundle] = "${@'' if d.getVar('BUNDLE') else 'FARLIGHT_BUNDLE names no folder'}"

SRC_URI = "file://farlight-bundle.service \
           file://install-bundle \
           ${@'file://' + d.getVar('BUNDLE') if d.getVar('BUNDLE') else ''} \
           "
S = "${UNPACKDIR}"

inherit features_check systemd

REQUIRED_DISTRO_FEATURES = "systemd"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    # It is written last: a folder without it is half an export.
    if [ ! -f ${UNPACKDIR}/${BUNDLE}/bundle.json ]; then
        bbfatal "${BUNDLE} was not made with: farlight release export"
    fi
    cd ${UNPACKDIR}/${BUNDLE}
    # The agent's user reads them.
    find . -type f | while read -r file; do
        install -D -m 0644 "$file" "${D}${datadir}/farlight/bundle/$file"
    done
    install -D -m 0755 ${S}/install-bundle ${D}${nonarch_libdir}/farlight/install-bundle
    install -D -m 0644 ${S}/farlight-bundle.service ${D}${systemd_system_unitdir}/farlight-bundle.service
}

SYSTEMD_SERVICE:${PN} = "farlight-bundle.service"
FILES:${PN} += "${datadir}/farlight ${nonarch_libdir}/farlight"
RDEPENDS:${PN} = "farlight-agent"
