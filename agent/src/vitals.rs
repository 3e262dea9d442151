//! The gateway's own state, from `sysinfo`.

use std::path::PathBuf;
use std::time::Instant;

use farlight_wire::telemetry::VitalsV1;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Reads the gateway's state.
pub struct Vitals {
    system: System,
    pid: Option<Pid>,
    state_dir: PathBuf,
    started: Instant,
}

impl Vitals {
    /// Watches this process and the file system of `state_dir`.
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            system: System::new(),
            pid: sysinfo::get_current_pid().ok(),
            state_dir,
            started: Instant::now(),
        }
    }

    /// The state now; load is since the last call. Eviction and drops are filled in by the recorder.
    pub fn read(&mut self) -> VitalsV1 {
        self.system.refresh_memory();
        let mut vitals = VitalsV1 {
            free_memory_kib: self.system.available_memory() / 1024,
            uptime_s: self.started.elapsed().as_secs(),
            ..VitalsV1::default()
        };
        if let Some(pid) = self.pid {
            let kind = ProcessRefreshKind::nothing().with_cpu().with_memory();
            self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, kind);
            if let Some(process) = self.system.process(pid) {
                vitals.cpu_permille = (process.cpu_usage() * 10.0) as u32;
                vitals.rss_kib = process.memory() / 1024;
            }
        }
        if let Ok(stat) = rustix::fs::statvfs(&self.state_dir) {
            vitals.free_disk_kib = stat.f_bavail.saturating_mul(stat.f_frsize) / 1024;
        }
        vitals
    }
}
