//! The numbers of one run, each computed from what happened, and whether they hold.

use std::io::Write as _;

use serde::Serialize;

/// The result object.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Numbers {
    /// Devices started.
    pub(crate) devices: usize,
    /// Share of right answers on the right arm, release 1.0.0.
    pub(crate) accuracy_before: f64,
    /// The same on the left arm.
    pub(crate) accuracy_drifted: f64,
    /// Share of right answers on the left arm, release 1.1.0.
    pub(crate) accuracy_after: f64,
    /// The same on the right arm: nothing is forgotten.
    pub(crate) accuracy_old_after: f64,
    /// Labels given.
    pub(crate) labels_used: usize,
    /// Bytes of the case stream as received by the cloud.
    pub(crate) case_bytes_uploaded: u64,
    /// Bytes of the telemetry stream a device and hour, at the demo's short windows.
    pub(crate) telemetry_bytes_per_device_hour: f64,
    /// Bytes of one window.
    pub(crate) telemetry_bytes_per_window: f64,
    /// Windows from the switch of arms to the verdict.
    pub(crate) drift_detected_after_windows: u64,
    /// Waves of the rollout of 1.1.0.
    pub(crate) rollout_waves: usize,
    /// Devices that ever answered with the bad release.
    pub(crate) bad_release_devices_exposed: usize,
    /// Devices of its canary wave.
    pub(crate) bad_release_canary_devices: usize,
    /// Longest time from its first to its last answer on a device.
    pub(crate) bad_release_rolled_back_ms: u64,
    /// Whether a tampered release was refused with its own error.
    pub(crate) tampered_refused: bool,
    /// Whether replayed metadata was refused with its own error.
    pub(crate) replayed_refused: bool,
    /// Records numbered by devices and not stored.
    pub(crate) records_lost: u64,
    /// Records stored twice.
    pub(crate) records_duplicated: u64,
    /// Records stored in all.
    pub(crate) records_stored: u64,
    /// Requests that a running agent did not answer.
    pub(crate) failed_inferences_during_swap: usize,
    /// Requests answered in all.
    pub(crate) inferences: usize,
    /// Time of the whole run, seconds.
    pub(crate) wall_s: f64,
}

/// One condition.
pub(crate) struct Check {
    /// What must hold.
    pub(crate) what: String,
    /// Whether it does.
    pub(crate) holds: bool,
}

impl Numbers {
    /// Every condition of the run.
    pub(crate) fn checks(&self, short: bool) -> Vec<Check> {
        let mut checks = Vec::new();
        let mut check = |what: String, holds| checks.push(Check { what, holds });
        let gain = self.accuracy_after - self.accuracy_drifted;
        check(format!("accuracy regained {gain:.3} ≥ 0.30"), gain >= 0.30);
        check(format!("{} labels ≤ 300", self.labels_used), self.labels_used <= 300 && self.labels_used > 0);
        let forgotten = self.accuracy_before - self.accuracy_old_after;
        check(format!("forgotten {forgotten:.3} ≤ 0.06"), forgotten <= 0.06);
        check(format!("{} records lost", self.records_lost), self.records_lost == 0);
        check(format!("{} records counted twice", self.records_duplicated), self.records_duplicated == 0);
        let failed = self.failed_inferences_during_swap;
        check(format!("{failed} requests failed during swaps"), failed == 0);
        if !short {
            let (exposed, canary) = (self.bad_release_devices_exposed, self.bad_release_canary_devices);
            check(
                format!("bad release on {exposed} of {canary} canary devices"),
                exposed > 0 && exposed <= canary,
            );
            check("tampered release refused".into(), self.tampered_refused);
            check("replayed metadata refused".into(), self.replayed_refused);
        }
        checks
    }

    /// Prints the table; whether everything holds.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(crate) fn print(&self, short: bool) -> std::io::Result<bool> {
        let mut out = std::io::stdout().lock();
        writeln!(out)?;
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let rows = [
            ("accuracy, right arm, 1.0.0", percent(self.accuracy_before)),
            ("accuracy, left arm, 1.0.0", percent(self.accuracy_drifted)),
            ("accuracy, left arm, 1.1.0", percent(self.accuracy_after)),
            ("accuracy, right arm, 1.1.0", percent(self.accuracy_old_after)),
            ("labels given", self.labels_used.to_string()),
            ("case bytes uploaded", self.case_bytes_uploaded.to_string()),
            ("telemetry bytes a window", format!("{:.0}", self.telemetry_bytes_per_window)),
            ("windows until drift was seen", self.drift_detected_after_windows.to_string()),
            ("waves of 1.1.0", self.rollout_waves.to_string()),
            ("bad release: devices exposed", self.bad_release_devices_exposed.to_string()),
            ("bad release: taken back after", format!("{} ms", self.bad_release_rolled_back_ms)),
            (
                "records stored / lost / twice",
                format!("{} / {} / {}", self.records_stored, self.records_lost, self.records_duplicated),
            ),
            (
                "inferences answered / failed",
                format!("{} / {}", self.inferences, self.failed_inferences_during_swap),
            ),
            ("time", format!("{:.0} s", self.wall_s)),
        ];
        for (name, value) in rows {
            writeln!(out, "  {name:<34}{value}")?;
        }
        writeln!(out)?;
        let checks = self.checks(short);
        for check in &checks {
            writeln!(out, "  {} {}", if check.holds { "✓" } else { "✗" }, check.what)?;
        }
        Ok(checks.iter().all(|check| check.holds))
    }
}
