SUMMARY = "Gateway with the Farlight agent, whose root is read-only"
DESCRIPTION = "The root file system lies in one of two slots; what the agent and the system keep is in /var, on a data partition."
LICENSE = "Apache-2.0"

inherit core-image features_check

REQUIRED_DISTRO_FEATURES = "systemd"

IMAGE_FEATURES += "read-only-rootfs"
IMAGE_INSTALL = "packagegroup-core-boot ${CORE_IMAGE_EXTRA_INSTALL} \
    ca-certificates farlight-agent farlight-agent-read-only \
    ${@'farlight-bundle' if d.getVar('FARLIGHT_BUNDLE') else ''}"

# Made for qemuarm64, whose kernel and command line come from outside of the disk. A board has a boot loader that wants
# partitions of its own: see README.md.
IMAGE_FSTYPES += "wic.zst"
WKS_FILE = "farlight-image.wks"
WKS_FILE_DEPENDS = "e2fsprogs-native"

QB_DEFAULT_FSTYPE = "wic.zst"
QB_FSINFO = "wic:no-kernel-in-fs"
QB_KERNEL_ROOT = "PARTLABEL=root-a ro"
QB_MEM = "-m 512"
