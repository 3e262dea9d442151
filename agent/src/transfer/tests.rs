//! Deltas in transfers: real models made of the ones before, and whole files whenever that fails.

use std::fs;

use farlight_device::pointer::Pointer;
use farlight_release::blob::describe;
use farlight_release::delta;
use farlight_release::manifest::Delta;

use super::*;
use crate::delta::tests::pairs;

/// A device that runs `old`, and a source of a release of `new` and golden vectors.
struct Setting {
    folder: tempfile::TempDir,
    slots: Slots,
    slot: Slot,
    new: Vec<u8>,
    blobs: [Blob; 2],
    deltas: Vec<Delta>,
    progress: Progress,
    received: AtomicU64,
}

impl Setting {
    fn new(old: &[u8], new: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let slots = Slots::new(&folder.path().join("state"));
        let of = |version: &str, digit: &str| Slot {
            release: format!("m/{version}").parse().unwrap(),
            digest: digit.repeat(64),
        };
        let (before, slot) = (of("1.0.0", "0"), of("1.1.0", "1"));
        let from = describe(old).id;
        fs::create_dir_all(slots.folder(&before)).unwrap();
        fs::write(slots.folder(&before).join(&from), old).unwrap();
        let pointer = Pointer { active: Some(before), ..Pointer::default() };
        slots.write_pointer(&slot.release.model, &pointer).unwrap();

        let golden = b"golden".to_vec();
        let made = delta::encode(old, new, &mut |_| {}).unwrap();
        let setting = Self {
            slots,
            slot,
            new: new.to_vec(),
            blobs: [describe(new), describe(&golden)],
            deltas: vec![Delta { from, blob: describe(&made) }],
            progress: Progress::default(),
            received: AtomicU64::new(0),
            folder,
        };
        fs::create_dir_all(setting.source("")).unwrap();
        for bytes in [new, &golden, &made] {
            fs::write(setting.source(&describe(bytes).id), bytes).unwrap();
        }
        setting
    }

    /// A blob at the source.
    fn source(&self, id: &str) -> PathBuf {
        self.folder.path().join("source/blobs").join(id)
    }

    fn base(&self) -> PathBuf {
        self.slots.shortcut(&self.slot.release.model, &self.deltas).unwrap().old
    }

    async fn run(&self) -> Result<(), Failure> {
        let sources = [Source::Folder(self.folder.path().join("source"))];
        let limits = Limits {
            max_bytes_per_second: 0,
            stall: Duration::from_secs(30),
            windows: Vec::new(),
            zone: Zone::named("").unwrap(),
        };
        let (progress, received) = (&self.progress, &self.received);
        let transfer = Transfer { sources: &sources, limits: &limits, progress, received };
        let shortcut = self.slots.shortcut(&self.slot.release.model, &self.deltas);
        let contents = Contents { manifest: b"{}", blobs: self.blobs.iter().collect(), shortcut };
        transfer.slot(&self.slots, &self.slot, &contents).await.map_err(|trouble| trouble.failure)
    }

    /// The slot holds the files of the release and nothing else.
    fn check(&self) {
        let folder = self.slots.folder(&self.slot);
        assert!(fs::read(folder.join(&self.blobs[0].id)).unwrap() == self.new);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 3);
        let (done, total) = self.progress.get().unwrap();
        assert_eq!(done, total);
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn whole(&self) -> u64 {
        self.blobs[0].length + self.blobs[1].length
    }

    fn by_delta(&self) -> u64 {
        self.deltas[0].blob.length + self.blobs[1].length
    }
}

fn change(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_made_of_the_one_before_without_its_file() {
    for (old, new) in pairs() {
        let setting = Setting::new(&old, &new);
        fs::remove_file(setting.source(&setting.blobs[0].id)).unwrap();
        setting.run().await.unwrap();
        setting.check();
        assert_eq!(setting.received(), setting.by_delta());
        assert_eq!(setting.progress.get(), Some((setting.by_delta(), setting.by_delta())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_base_or_delta_the_whole_file_comes() {
    let wrongs: [fn(&Setting); 4] = [
        |setting| change(&setting.base()),
        |setting| fs::write(setting.base(), b"torn").unwrap(),
        |setting| change(&setting.source(&setting.deltas[0].blob.id)),
        |setting| fs::remove_file(setting.source(&setting.deltas[0].blob.id)).unwrap(),
    ];
    for (old, new) in pairs() {
        for wrong in wrongs {
            let setting = Setting::new(&old, &new);
            wrong(&setting);
            setting.run().await.unwrap();
            setting.check();
            assert!(setting.received() >= setting.whole(), "{} bytes", setting.received());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_is_signed_but_no_delta_leads_to_the_whole_file() {
    let (old, new) = pairs().swap_remove(0);
    let mut setting = Setting::new(&old, &new);
    let blob = describe(b"no delta");
    fs::write(setting.source(&blob.id), b"no delta").unwrap();
    setting.deltas[0].blob = blob;
    setting.run().await.unwrap();
    setting.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_failed_is_not_fetched_again() {
    let (old, new) = pairs().swap_remove(0);
    let setting = Setting::new(&old, &new);
    change(&setting.base());
    let (file, aside) = (setting.source(&setting.blobs[0].id), setting.source("aside"));
    fs::rename(&file, &aside).unwrap();
    assert_eq!(setting.run().await.unwrap_err().code, Code::FetchMissing);
    let before = setting.received();
    assert_eq!(before, setting.deltas[0].blob.length);
    fs::rename(&aside, &file).unwrap();
    setting.run().await.unwrap();
    setting.check();
    assert_eq!(setting.received() - before, setting.whole());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_power_cut_left_is_used_or_thrown_away() {
    let (old, new) = pairs().swap_remove(0);
    let setting = Setting::new(&old, &new);
    let part = setting.slots.part(&setting.slot);
    fs::create_dir_all(&part).unwrap();
    // The delta is there and its result half written.
    fs::copy(setting.source(&setting.deltas[0].blob.id), part.join(DELTA)).unwrap();
    fs::write(part.join(&setting.blobs[0].id), &new[..new.len() / 2]).unwrap();
    setting.run().await.unwrap();
    setting.check();
    assert_eq!(setting.received(), setting.blobs[1].length);
    // The result is there and its delta gone; or both are there.
    for leftover in [false, true] {
        let setting = Setting::new(&old, &new);
        let part = setting.slots.part(&setting.slot);
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join(&setting.blobs[0].id), &new).unwrap();
        if leftover {
            fs::copy(setting.source(&setting.deltas[0].blob.id), part.join(DELTA)).unwrap();
        }
        setting.run().await.unwrap();
        setting.check();
        assert_eq!(setting.received(), setting.blobs[1].length);
    }
}

#[test]
fn the_smallest_delta_from_a_file_that_is_there_is_taken() {
    let (old, new) = pairs().swap_remove(0);
    let setting = Setting::new(&old, &new);
    let mut deltas = setting.deltas.clone();
    let find = |deltas: &[Delta]| {
        let shortcut = setting.slots.shortcut(&setting.slot.release.model, deltas);
        shortcut.map(|shortcut| shortcut.delta.length)
    };
    deltas.push(Delta { from: "f".repeat(64), blob: describe(b"s") });
    assert_eq!(find(&deltas), Some(setting.deltas[0].blob.length));
    deltas.push(Delta { from: setting.deltas[0].from.clone(), blob: describe(b"xs") });
    assert_eq!(find(&deltas), Some(2));
    assert_eq!(find(&deltas[1..2]), None);
    assert_eq!(find(&[]), None);
}
