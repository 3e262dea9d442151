//! Applying a delta: the file of an old slot and a delta make the file of a new one. Every chunk of the
//! result is hashed against its signed digest before it is written, as if it had come over the network.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::path::Path;

use farlight_device::update::Failure;
use farlight_release::blob::ChunkVerifier;
use farlight_release::delta::{self, DeltaError};
use farlight_release::manifest::Blob;
use farlight_wire::codes::Code;

use crate::durable;
use crate::transfer::storage;

/// Bytes written between two syncs: what waits to be written stays bounded.
const SYNC_EVERY: u64 = 4 * 1024 * 1024;
/// Bytes of the delta read at a time: its operations begin with a few single bytes.
const READ: usize = 64 * 1024;

/// Makes the file `new`, which is what `blob` describes, of the file `old` and the file `delta`, and makes it
/// durable; the folder it lies in is left to the caller. Takes a few MiB of memory whatever the files' size.
///
/// # Errors
/// `delta.malformed` or `fetch.chunk_mismatch` when the three do not belong together, `storage.failed` or
/// `fetch.no_space` when a file cannot be read or written. What is left of `new` is verified: fetching the
/// whole blob goes on from there.
pub fn apply(old: &Path, delta: &Path, new: &Path, blob: &Blob) -> Result<(), Failure> {
    let open = |path: &Path| {
        File::open(path)
            .map_err(|e| Failure::new(Code::StorageFailed, format!("open {}: {e}", path.display())))
    };
    let (mut old, delta) = (open(old)?, open(delta)?);
    let verifier = ChunkVerifier::new(blob).map_err(|e| Failure::new(e.code(), e.to_string()))?;
    // A file of its own: one that is being applied for a job that was called off meanwhile may be open.
    let file = durable::remove(new).and_then(|()| OpenOptions::new().write(true).create_new(true).open(new));
    let file = file.map_err(|e| storage(new, &e))?;
    let mut writer = Writer { path: new, file, verifier, unsynced: 0, failure: None };
    let made = delta::apply(&mut old, BufReader::with_capacity(READ, delta), &mut writer, blob.length);
    let done = match (made, writer.failure.take()) {
        (Ok(()), None) => writer.finish(),
        (_, Some(failure)) => Err(failure),
        (Err(DeltaError::New(error)), None) => Err(storage(new, &error)),
        (Err(error), None) => Err(Failure::new(error.code(), error.to_string())),
    };
    if done.is_err() {
        // A torn write may have left part of a chunk.
        let _ = writer.file.set_len(writer.verifier.offset());
    }
    done
}

/// Writes whole chunks that hold what was signed.
struct Writer<'a> {
    path: &'a Path,
    file: File,
    verifier: ChunkVerifier,
    unsynced: u64,
    /// Why it refused; an `io::Error` cannot carry the code.
    failure: Option<Failure>,
}

impl Writer<'_> {
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        loop {
            let chunk = match self.verifier.push(&mut bytes) {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(()),
                Err(error) => return Err(Failure::new(error.code(), error.to_string())),
            };
            self.file.write_all(chunk.bytes).map_err(|e| storage(self.path, &e))?;
            self.unsynced += chunk.bytes.len() as u64;
            if self.unsynced >= SYNC_EVERY {
                self.file.sync_data().map_err(|e| storage(self.path, &e))?;
                self.unsynced = 0;
            }
        }
    }

    fn finish(&mut self) -> Result<(), Failure> {
        self.verifier.finish().map_err(|e| Failure::new(e.code(), e.to_string()))?;
        self.file.sync_all().map_err(|e| storage(self.path, &e))
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.take(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(failure) => {
                let error = io::Error::other(failure.message.clone());
                self.failure = Some(failure);
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::path::PathBuf;

    use farlight_release::blob::describe;

    use super::*;

    /// The models of `models/`, and what a training that changes every weight a little might make of them.
    pub(crate) fn pairs() -> Vec<(Vec<u8>, Vec<u8>)> {
        ["watch-gestures", "digits"]
            .map(|name| {
                let path =
                    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name).join("model.onnx");
                let old = fs::read(path).unwrap();
                let mut model = farlight_onnx::Model::parse(&old, &farlight_onnx::Limits::default()).unwrap();
                for tensor in model.graph().initializer.clone() {
                    let Ok(mut values) = farlight_onnx::tensor::to_f32(&tensor) else { continue };
                    for (i, value) in values.iter_mut().enumerate() {
                        *value += 1e-4 * (i as f32 * 0.7).sin();
                    }
                    model.replace_f32(tensor.name(), &values).unwrap();
                }
                (old, model.to_bytes())
            })
            .to_vec()
    }

    struct Files {
        _folder: tempfile::TempDir,
        old: PathBuf,
        delta: PathBuf,
        new: PathBuf,
    }

    fn files(old: &[u8], delta: &[u8]) -> Files {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let files = Files { old: path("old"), delta: path("delta"), new: path("new"), _folder: folder };
        fs::write(&files.old, old).unwrap();
        fs::write(&files.delta, delta).unwrap();
        files
    }

    fn encode(old: &[u8], new: &[u8]) -> Vec<u8> {
        delta::encode(old, new, &mut |_| {}).unwrap()
    }

    #[test]
    fn real_models_are_made_again_to_the_byte() {
        for (old, new) in pairs() {
            let delta = encode(&old, &new);
            assert!(delta.len() < new.len() * 7 / 10, "{} of {}", delta.len(), new.len());
            let files = files(&old, &delta);
            // A leftover of an earlier life does not matter.
            fs::write(&files.new, b"leftover").unwrap();
            apply(&files.old, &files.delta, &files.new, &describe(&new)).unwrap();
            assert_eq!(fs::read(&files.new).unwrap(), new);
        }
    }

    #[test]
    fn what_does_not_belong_together_is_refused_and_leaves_nothing_unverified() {
        let [(old, new), (other, _)] = pairs().try_into().unwrap();
        let delta = encode(&old, &new);
        let blob = describe(&new);
        let mut changed = old.clone();
        changed[old.len() / 2] ^= 1;
        let mut torn = delta.clone();
        torn.truncate(delta.len() / 2);
        let cases: [(&[u8], &[u8], &Blob, Code); 5] = [
            (&changed, &delta, &blob, Code::FetchChunkMismatch),
            (&other, &delta, &blob, Code::DeltaMalformed),
            (&old, &torn, &blob, Code::DeltaMalformed),
            (&old, &new, &blob, Code::DeltaMalformed),
            (&old, &delta, &describe(&other), Code::DeltaMalformed),
        ];
        for (old, delta, blob, code) in cases {
            let files = files(old, delta);
            let failure = apply(&files.old, &files.delta, &files.new, blob).unwrap_err();
            assert_eq!(failure.code, code, "{}", failure.message);
            assert_eq!(fs::read(&files.new).unwrap(), b"");
        }
    }

    #[test]
    fn chunks_before_a_mismatch_stay_for_the_download_to_go_on_from() {
        let old = vec![7; 2 * 1024 * 1024 + 5];
        let mut new = old.clone();
        new.push(8);
        let delta = encode(&old, &new);
        let mut changed = old.clone();
        changed[1024 * 1024 + 1] = 0;
        let files = files(&changed, &delta);
        let failure = apply(&files.old, &files.delta, &files.new, &describe(&new)).unwrap_err();
        assert_eq!(failure.code, Code::FetchChunkMismatch);
        assert_eq!(fs::read(&files.new).unwrap(), new[..1024 * 1024]);
    }

    #[test]
    fn files_that_are_missing_are_named() {
        let files = files(b"old", b"delta");
        let missing = files.old.with_file_name("missing");
        let failure = apply(&missing, &files.delta, &files.new, &describe(b"new")).unwrap_err();
        assert_eq!(failure.code, Code::StorageFailed);
        assert!(failure.message.contains("missing"), "{}", failure.message);
    }
}
