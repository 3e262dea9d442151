//! `tough` accepts the repository that `FARLIGHT_REPOSITORY` names (`tests/interop/run tuf` makes
//! one with the real command line and cloud), down to the content of a target of each role.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use tough::{FilesystemTransport, IntoVec, RepositoryLoader, TargetName};
use url::Url;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test]
async fn tough_accepts_what_farlight_publishes() {
    let Some(repository) = std::env::var_os("FARLIGHT_REPOSITORY").map(PathBuf::from) else {
        println!("not run: FARLIGHT_REPOSITORY is not set");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    copy(&repository, folder.path());
    let url = |name: &str| Url::from_directory_path(folder.path().join(name)).unwrap();
    let root = std::fs::read(folder.path().join("metadata/1.root.json")).unwrap();
    let loaded = RepositoryLoader::new(&root, url("metadata"), url("targets"))
        .transport(FilesystemTransport)
        .load()
        .await
        .unwrap();
    let targets: Vec<(TargetName, String, u64)> = loaded
        .all_targets()
        .map(|(name, target)| (name.clone(), hex::encode(&target.hashes.sha256), target.length))
        .collect();
    let roles = loaded.targets().signed.delegations.iter().flat_map(|all| &all.roles).count();
    assert!(targets.len() > 2 && roles > 0, "{targets:?}");
    for (name, digest, length) in &targets {
        let (parent, file) = name.raw().rsplit_once('/').unwrap();
        let served = folder.path().join("targets").join(parent).join(format!("{digest}.{file}"));
        // It asks for `‹digest›.dir/file`, the specification says `dir/‹digest›.file`.
        let asked = folder.path().join("targets").join(format!("{digest}.{}", name.raw()));
        std::fs::create_dir_all(asked.parent().unwrap()).unwrap();
        std::fs::copy(served, asked).unwrap();
        let bytes = loaded.read_target(name).await.unwrap().unwrap().into_vec().await.unwrap();
        assert_eq!(bytes.len() as u64, *length);
    }
    println!("tough: {} targets of {} roles accepted", targets.len(), roles + 1);
}
