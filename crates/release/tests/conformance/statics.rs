//! `test_static_repositories.py`: 2 cases, on repositories that `tests/interop/static_repositories.py` made
//! with python-tuf in the shape of the suite's: a delegated target, and a long chain of rotated roots.

use std::path::PathBuf;

use super::device::Device;
use super::repository::NOW;

/// A file of the repositories made by python-tuf.
pub(crate) fn read(path: &str) -> Option<Vec<u8>> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/python-tuf"));
    #[expect(clippy::disallowed_methods, reason = "test data")]
    std::fs::read(folder.join(path)).ok()
}

#[test]
fn test_static_repository() {
    for (name, target, roots) in [("delegated", "family/artifact", 1), ("rotated", "trusted_root.json", 6)] {
        let mut device = Device::trusting(&read(&format!("{name}/metadata/1.root.json")).unwrap());
        let mut get = |path: &str| read(&format!("{name}/{path}"));
        device.download_from(&mut get, &[target], NOW).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(device.version("root"), Some(roots), "{name}");
        assert_eq!(device.files.len(), 1, "{name}");
    }
}
