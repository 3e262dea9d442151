SUMMARY = "Runs verified ONNX models on a device and keeps them good"
DESCRIPTION = "Answers inference requests on a gateway, also without a network, measures drift, keeps hard cases, and takes \
signed releases that it tries first and takes back by itself when they are bad."
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=1836efb2eb779966696f473ee8540542"

# The checkout that this layer lies in is built, as it is. Where the layer lies alone, this names a repository to fetch,
# and FARLIGHT_SRCREV its commit.
FARLIGHT_SRC_URI ?= ""
FARLIGHT_SRCREV ?= "INVALID"

SRC_URI = "${FARLIGHT_SRC_URI} file://enrolment-on-data.conf"
SRCREV = "${FARLIGHT_SRCREV}"
require farlight-agent-crates.inc

inherit cargo externalsrc features_check systemd useradd

EXTERNALSRC = "${@'' if d.getVar('FARLIGHT_SRC_URI') else os.path.realpath(d.getVar('FARLIGHT_CHECKOUT'))}"
# Nothing is left in the checkout.
EXTERNALSRC_SYMLINKS = ""

REQUIRED_DISTRO_FEATURES = "systemd"

CARGO_SRC_DIR = "agent"
CARGO_LOCK_PATH = "${S}/Cargo.lock"
# What is shipped is small; see Cargo.toml.
BUILD_MODE = "--profile=dist"
BUILD_DIR = "dist"
# The symbols are taken out when the package is made.
export CARGO_PROFILE_DIST_STRIP = "none"
CARGO_BUILD_FLAGS:append = " --bin=farlight-agent --no-default-features"
# The checkout is elsewhere than the work folder, which is left out of the program already.
RUSTFLAGS:append = " --remap-path-prefix=${S}=${TARGET_DBGSRC_DIR}"

PACKAGECONFIG ??= "grpc onnxruntime"
PACKAGECONFIG[grpc] = "--features=grpc"
PACKAGECONFIG[onnxruntime] = "--features=onnxruntime"
PACKAGECONFIG[camera] = "--features=camera"

do_install() {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/farlight-agent ${D}${bindir}/farlight-agent
    install -D -m 0644 ${S}/agent/agent.sample.toml ${D}${sysconfdir}/farlight/agent.toml
    install -D -m 0755 ${S}/systemd/usr/lib/farlight/agent-diagnostics ${D}${nonarch_libdir}/farlight/agent-diagnostics
    install -D -m 0644 ${S}/systemd/usr/lib/sysusers.d/farlight-agent.conf ${D}${nonarch_libdir}/sysusers.d/farlight-agent.conf

    install -d ${D}${systemd_system_unitdir}
    for unit in farlight-agent.service farlight-agent.socket farlight-agent-diagnostics.service farlight-agent-retry.timer farlight-enrol.service; do
        install -m 0644 ${S}/systemd/usr/lib/systemd/system/$unit ${D}${systemd_system_unitdir}/$unit
    done
    install -D -m 0644 ${UNPACKDIR}/enrolment-on-data.conf ${D}${systemd_system_unitdir}/farlight-enrol.service.d/data.conf

    install -d ${D}${docdir}/farlight-agent/examples
    install -m 0644 ${S}/docs/install.md ${D}${docdir}/farlight-agent/install.md
    install -m 0644 ${S}/systemd/examples/awake.conf ${D}${docdir}/farlight-agent/examples/awake.conf
    install -m 0644 ${S}/systemd/examples/npu.conf ${D}${docdir}/farlight-agent/examples/npu.conf
    install -m 0644 ${S}/systemd/examples/enrolment-encrypted.conf ${D}${docdir}/farlight-agent/examples/enrolment-encrypted.conf
}

SYSTEMD_SERVICE:${PN} = "farlight-agent.service"

# As sysusers.d says it, which a read-only root cannot carry out when it boots.
USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --user-group --home-dir ${localstatedir}/lib/farlight --no-create-home \
    --shell ${base_sbindir}/nologin --comment 'Farlight agent' farlight"

# For devices whose /etc cannot be written: the enrolment file lies in /var.
PACKAGES =+ "${PN}-read-only"

FILES:${PN}-read-only = "${systemd_system_unitdir}/farlight-enrol.service.d"
FILES:${PN} += "${nonarch_libdir}/farlight ${nonarch_libdir}/sysusers.d ${systemd_system_unitdir}"
CONFFILES:${PN} = "${sysconfdir}/farlight/agent.toml"
RDEPENDS:${PN}-read-only = "${PN}"
RDEPENDS:${PN} = "ca-certificates"
# For update.time_zone.
RRECOMMENDS:${PN} = "tzdata"
