//! Counters of the service in Prometheus' text format at `/metrics`. They restart at zero; what must
//! not be lost is counted in the database and served by `/api/v1/stats`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label: the stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamLabel {
    /// `tel`, `case` or `rep`.
    pub stream: &'static str,
}

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Records stored.
    pub records_stored: Family<StreamLabel, Counter>,
    /// Records that came again.
    pub records_duplicate: Family<StreamLabel, Counter>,
    /// Batches that came before the one they follow.
    pub batches_gap: Family<StreamLabel, Counter>,
    /// Payload bytes received.
    pub bytes_received: Family<StreamLabel, Counter>,
    /// Records whose content breaks the rules: acknowledged, not stored.
    pub records_refused: Family<StreamLabel, Counter>,
    /// Messages that are no payload of ours.
    pub messages_refused: Counter,
    /// Messages dropped because the queue to the store was full.
    pub messages_dropped: Counter,
    /// Transactions of the ingest.
    pub commits: Counter,
    /// Devices online.
    pub devices_online: Gauge,
    /// Rollouts that run or are paused.
    pub rollouts_active: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("farlight"),
            records_stored: Family::default(),
            records_duplicate: Family::default(),
            batches_gap: Family::default(),
            bytes_received: Family::default(),
            records_refused: Family::default(),
            messages_refused: Counter::default(),
            messages_dropped: Counter::default(),
            commits: Counter::default(),
            devices_online: Gauge::default(),
            rollouts_active: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("records_stored", "Records stored", metrics.records_stored.clone());
        registry.register("records_duplicate", "Records that came again", metrics.records_duplicate.clone());
        registry.register("batches_gap", "Batches out of order", metrics.batches_gap.clone());
        registry.register("bytes_received", "Payload bytes received", metrics.bytes_received.clone());
        registry.register("records_refused", "Records with bad content", metrics.records_refused.clone());
        registry.register("messages_refused", "Messages not understood", metrics.messages_refused.clone());
        registry.register(
            "messages_dropped",
            "Messages the queue had no room for",
            metrics.messages_dropped.clone(),
        );
        registry.register("ingest_commits", "Transactions of the ingest", metrics.commits.clone());
        registry.register("devices_online", "Devices online", metrics.devices_online.clone());
        registry.register(
            "rollouts_active",
            "Rollouts that run or are paused",
            metrics.rollouts_active.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// The metrics as text.
    ///
    /// # Errors
    /// Never for a `String`; the library's signature has it.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
