//! What the device says of itself: inventory, what runs with digests, and the diagnostics that people ask for.

use farlight_wire::limits::MAX_DIAGNOSTICS;
use farlight_wire::report::{Inventory, Running};
use serde_json::json;

use super::Driver;
use crate::journal::Journal;
use crate::logs;

/// Steps of updates in a diagnostics document.
const HISTORY: u32 = 30;

impl Driver {
    pub(super) fn inventory(&self) -> Inventory {
        let system = sysinfo::System::new_with_specifics(
            sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()),
        );
        Inventory {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            os: sysinfo::System::long_os_version().unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            memory_kib: system.total_memory() / 1024,
            labels: self.parts.labels.clone(),
            running: self.running(),
            assignment: self.assignment,
        }
    }

    /// What runs, by the pointers.
    pub(super) fn running(&self) -> Vec<Running> {
        let running = self.models.values().filter_map(|model| {
            let slot = model.pointer.active.as_ref()?;
            Some(Running {
                release: slot.release.clone(),
                manifest_sha256: slot.digest.clone(),
                confirmed: model.pointer.trials.is_none(),
            })
        });
        running.collect()
    }

    /// What helps people to see what is wrong: never inputs, keys or tokens. Cut from its oldest log lines
    /// until it fits in one report.
    pub(super) fn diagnostics(&self) -> String {
        let path = self.parts.journal.path();
        let history = Journal::history(path, None, HISTORY).unwrap_or_default();
        let free = rustix::fs::statvfs(path).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize)).ok();
        let pointers: Vec<_> = self.models.values().map(|model| &model.pointer).collect();
        let mut log = logs::lines();
        loop {
            let document = json!({
                "inventory": self.inventory(),
                "status": self.parts.status.document(&self.parts.models),
                "pointers": pointers,
                "free_bytes": free,
                "paused_until": self.paused_until,
                "trust": self.trust.is_some(),
                "history": history,
                "log": log,
            })
            .to_string();
            if document.len() <= MAX_DIAGNOSTICS {
                return document;
            }
            if log.is_empty() {
                // Only a history full of long messages leads here.
                return json!({ "inventory": self.inventory(), "pointers": pointers }).to_string();
            }
            log.drain(..log.len().div_ceil(4));
        }
    }
}
