//! Files put into a folder: each complete one is answered by `NAME.‹model›.json` beside it and then moved to `done/`
//! or `failed/`. Both steps are durable and in this order, and an answer names the very file that it belongs to, so
//! that a file which was answered before a crash is only moved after it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::feed::document;
use super::{Base, ask_patiently, form};
use crate::durable::{self, Access};
use crate::settings::source::{Folder, Keep};

mod watch;

/// Most files looked at in one go; the others have their turn when these are gone.
const MAX_LISTED: usize = 10_000;
/// Largest earlier answer that is looked at, bytes.
const MAX_ANSWER: u64 = 64 << 20;
/// Endings of inputs.
const ENDINGS: [&str; 4] = ["json", "csv", "npy", "bin"];

/// Answers the files of a folder until shutdown.
pub(super) async fn run(base: Base, settings: Folder) -> anyhow::Result<()> {
    let path = &settings.path;
    durable::create_folder(path).with_context(|| format!("create {}", path.display()))?;
    let watch = watch::Watch::new(path);
    base.models_present().await;
    let settle = Duration::from_millis(settings.settle_ms);
    let mut complete = HashSet::new();
    // What could not be moved away would be answered for ever: it is left alone until the next start.
    let mut stuck = HashSet::new();
    loop {
        complete.extend(watch.take());
        let listed = tokio::task::block_in_place(|| list(path, settle, &complete));
        let mut names = listed.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the folder cannot be read");
            Vec::new()
        });
        names.retain(|name| !stuck.contains(name));
        if names.is_empty() {
            // What is left are names of no inputs.
            complete.clear();
            watch.changed(settle).await;
        }
        for name in names {
            complete.remove(&name);
            if let Err(error) = one(&base, &settings, &name).await {
                tracing::error!(file = %path.join(&name).display(), "left where it is: {error:#}");
                if stuck.len() < MAX_LISTED {
                    stuck.insert(name);
                }
            }
        }
    }
}

/// The names of complete inputs, oldest first.
fn list(folder: &Path, settle: Duration, complete: &HashSet<OsString>) -> io::Result<Vec<OsString>> {
    let now = SystemTime::now();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        // One that is gone again was no input.
        let Ok(about) = entry.metadata() else { continue };
        if !about.is_file() || !is_input(&name) {
            continue;
        }
        let modified = about.modified()?;
        // A time in the future is that of another clock.
        let since = now.duration_since(modified).unwrap_or_else(|ahead| ahead.duration());
        if since >= settle || complete.contains(&name) {
            found.push((modified, name));
        }
        if found.len() == MAX_LISTED {
            break;
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

fn ending(name: &OsStr) -> Option<&str> {
    Path::new(name).extension().and_then(OsStr::to_str).filter(|ending| ENDINGS.contains(ending))
}

/// Whether a name is an input's: not hidden, of a known ending, and not that of an answer (`NAME.‹model›.json`, where
/// NAME has the ending of an input).
fn is_input(name: &OsStr) -> bool {
    let hidden = name.as_encoded_bytes().starts_with(b".");
    let answer = Path::new(name).extension() == Some(OsStr::new("json"))
        && Path::new(name).file_stem().map(Path::new).and_then(Path::file_stem).and_then(ending).is_some();
    !hidden && !answer && ending(name).is_some()
}

/// What tells a file from all others that had or will have its name.
#[derive(Debug, PartialEq)]
struct Identity(Value);

/// Answers one file with every model and moves it.
///
/// # Errors
/// When an answer cannot be written or the file not be moved.
async fn one(base: &Base, settings: &Folder, name: &OsStr) -> anyhow::Result<()> {
    let path = settings.path.join(name);
    let read = tokio::task::block_in_place(|| read(&path, settings.max_bytes));
    let (identity, bytes) = match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("read {}", path.display()))?,
    };
    let input = bytes.and_then(|bytes| {
        let read = form::file(ending(name).unwrap_or_default(), &bytes, settings.datatype);
        read.unwrap_or_else(|| Err("its ending is not known".to_owned()))
    });
    let mut failed = false;
    let mut asked = false;
    for model in &base.models {
        let mut answer_name = name.to_owned();
        answer_name.push(format!(".{model}.json"));
        let answer_path = settings.path.join(answer_name);
        if let Some(answer) = earlier(&answer_path, &identity) {
            failed |= answer.get("error").is_some();
            continue;
        }
        let file = name.to_string_lossy();
        let (id, answer) = match &input {
            Ok(whole) => {
                let id = if whole.id.is_empty() { file.as_ref() } else { &whole.id };
                (id, ask_patiently(base, model, id, &whole.data).await)
            }
            Err(error) => (file.as_ref(), Err(error.clone())),
        };
        failed |= answer.is_err();
        let mut answer = document(id, model, answer);
        answer["input"] = identity.0.clone();
        let text = format!("{answer}\n");
        tokio::task::block_in_place(|| durable::replace(&answer_path, text.as_bytes(), Access::Normal))
            .with_context(|| format!("write {}", answer_path.display()))?;
        asked = true;
        match answer.get("error") {
            None => base.tally.answered(),
            Some(_) => base.tally.failed(),
        }
    }
    if asked {
        base.tally.received(1);
    }
    let outcome = if failed { Outcome::Failed } else { Outcome::Done };
    tokio::task::block_in_place(|| put_away(&settings.path, name, outcome, settings.keep))
}

/// A file's identity and content; in place of the content, why it is refused.
fn read(path: &Path, max_bytes: u64) -> io::Result<(Identity, Result<Vec<u8>, String>)> {
    // Nothing that is not a plain file is followed or waited for.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let about = file.metadata()?;
    let modified = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (content, digest) = if !about.is_file() {
        (Err("it is not a plain file".to_owned()), None)
    } else {
        match limited(&file, max_bytes)? {
            Some(bytes) => {
                let digest = hex::encode(Sha256::digest(&bytes));
                (Ok(bytes), Some(digest))
            }
            None => (Err(format!("it has more than {max_bytes} bytes")), None),
        }
    };
    let modified = format!("{}.{:09}", modified.as_secs(), modified.subsec_nanos());
    let identity = json!({ "bytes": about.len(), "modified": modified, "sha256": digest });
    Ok((Identity(identity), content))
}

fn limited(file: &File, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= max_bytes).then_some(bytes))
}

/// The answer to this very file that an earlier life wrote.
fn earlier(path: &Path, identity: &Identity) -> Option<Value> {
    let bytes = durable::read_limited(path, MAX_ANSWER).ok().flatten()?;
    let answer: Value = serde_json::from_slice(&bytes).ok()?;
    (answer.get("input") == Some(&identity.0)).then_some(answer)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
}

/// Moves a file to where its kind is kept, or deletes it.
fn put_away(folder: &Path, name: &OsStr, outcome: Outcome, keep: Keep) -> anyhow::Result<()> {
    let from = folder.join(name);
    let kept = match (keep, outcome) {
        (Keep::All, Outcome::Done) => Some("done"),
        (Keep::All | Keep::Failed, Outcome::Failed) => Some("failed"),
        (Keep::Failed, Outcome::Done) | (Keep::None, _) => None,
    };
    let Some(kept) = kept else {
        durable::remove(&from).with_context(|| format!("delete {}", from.display()))?;
        return durable::sync_folder(folder).context("sync the folder");
    };
    let kept = folder.join(kept);
    durable::create_folder(&kept).with_context(|| format!("create {}", kept.display()))?;
    let to = free(&kept, name);
    std::fs::rename(&from, &to).with_context(|| format!("move to {}", to.display()))?;
    durable::sync_folder(&kept).and_then(|()| durable::sync_folder(folder)).context("sync the folders")
}

/// `NAME`, or `NAME.1`, `NAME.2`, …: an earlier file of that name stays.
fn free(folder: &Path, name: &OsStr) -> PathBuf {
    let mut number = 0_u64;
    loop {
        let mut candidate = name.to_owned();
        if number > 0 {
            candidate.push(format!(".{number}"));
        }
        let path = folder.join(candidate);
        if std::fs::symlink_metadata(&path).is_err() {
            return path;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_hidden_files_are_no_inputs() {
        for name in ["a.json", "a.b.json", "a.csv", "x.npy", "digits.bin", "a.csv.json"] {
            assert!(is_input(OsStr::new(name)), "{name}");
        }
        for name in
            [".a.json", "a.json.digits.json", "a.npy.digits.json", "a.part", "a", "a.json.digits.new", ""]
        {
            assert!(!is_input(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn a_file_is_known_by_content_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        std::fs::write(&path, b"12345").unwrap();
        let (identity, bytes) = read(&path, 5).unwrap();
        assert_eq!(bytes.unwrap(), b"12345");
        let answer = dir.path().join("a.bin.m.json");
        std::fs::write(&answer, json!({ "input": identity.0, "label": "x" }).to_string()).unwrap();
        assert_eq!(earlier(&answer, &identity).unwrap()["label"], "x");
        assert_eq!(read(&path, 5).unwrap().0, identity);
        File::open(&path).unwrap().set_modified(UNIX_EPOCH).unwrap();
        assert!(earlier(&answer, &read(&path, 5).unwrap().0).is_none());
        assert!(read(&path, 4).unwrap().1.unwrap_err().contains("4 bytes"));
        assert!(read(dir.path(), 4).unwrap().1.unwrap_err().contains("plain"));
        std::os::unix::fs::symlink(&path, dir.path().join("link.bin")).unwrap();
        assert!(read(&dir.path().join("link.bin"), 5).is_err());
    }

    #[test]
    fn files_are_put_away_and_none_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let name = OsStr::new("a.csv");
        for round in 0..3 {
            std::fs::write(dir.path().join(name), round.to_string()).unwrap();
            put_away(dir.path(), name, Outcome::Done, Keep::All).unwrap();
        }
        for (round, name) in ["a.csv", "a.csv.1", "a.csv.2"].into_iter().enumerate() {
            assert_eq!(
                std::fs::read_to_string(dir.path().join("done").join(name)).unwrap(),
                round.to_string()
            );
        }
        for (outcome, keep, kept) in [
            (Outcome::Failed, Keep::Failed, Some("failed/a.csv")),
            (Outcome::Done, Keep::Failed, None),
            (Outcome::Failed, Keep::None, None),
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
            put_away(dir.path(), name, outcome, keep).unwrap();
            assert!(!dir.path().join(name).exists());
            assert!(kept.is_none_or(|kept| dir.path().join(kept).exists()));
        }
    }

    /// What is listed when so many names were told.
    async fn listed(dir: &Path, watch: &watch::Watch, told: usize) -> Vec<OsString> {
        let mut complete = HashSet::new();
        let all = async {
            while complete.len() < told {
                watch.changed(Duration::from_secs(1)).await;
                complete.extend(watch.take());
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
        list(dir, Duration::from_secs(3_600), &complete).unwrap()
    }

    #[tokio::test]
    async fn a_file_is_complete_when_it_settled_or_was_closed_or_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let watch = watch::Watch::new(dir.path());
        std::fs::write(dir.path().join("a.csv"), "1").unwrap();
        assert_eq!(listed(dir.path(), &watch, 1).await, ["a.csv"]);
        assert!(listed(dir.path(), &watch, 0).await.is_empty());
        File::open(dir.path().join("a.csv")).unwrap().set_modified(UNIX_EPOCH).unwrap();
        let open = File::create(dir.path().join("b.csv")).unwrap();
        assert_eq!(listed(dir.path(), &watch, 0).await, ["a.csv"]);
        drop(open);
        std::fs::write(dir.path().join(".c"), "1").unwrap();
        std::fs::rename(dir.path().join(".c"), dir.path().join("c.csv")).unwrap();
        assert_eq!(listed(dir.path(), &watch, 3).await.len(), 3);
    }
}
