//! Prometheus metrics: requests, failures and a latency histogram per model, in seconds.

use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::Service;
use crate::models::InferError;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Model {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    model: String,
    reason: &'static str,
}

/// The metrics and their registry.
pub struct Metrics {
    registry: Registry,
    answered: Family<Model, Counter>,
    failed: Family<Failure, Counter>,
    latency: Family<Model, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("farlight");
        let answered = Family::default();
        let failed = Family::default();
        // 50 µs to 26 s, each bucket twice the one before.
        let latency = Family::<Model, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(50e-6, 2.0, 20))
        });
        registry.register("inferences", "Inputs answered", answered.clone());
        registry.register("inference_failures", "Requests not answered, by reason", failed.clone());
        registry.register_with_unit(
            "request_duration",
            "Whole time of a request in the agent",
            Unit::Seconds,
            latency.clone(),
        );
        Self { registry, answered, failed, latency }
    }
}

impl Metrics {
    /// Counts an answered request of `items` inputs.
    pub fn answered(&self, model: &str, items: usize, latency: Duration) {
        let label = Model { model: model.to_owned() };
        self.answered.get_or_create(&label).inc_by(items as u64);
        self.latency.get_or_create(&label).observe(latency.as_secs_f64());
    }

    /// Counts a request that was not answered.
    pub fn failed(&self, model: &str, error: &InferError) {
        use farlight_inference::RunError;
        let reason = match error {
            InferError::Unknown(_) => "unknown",
            InferError::Busy { .. } => "busy",
            InferError::Off(_) => "off",
            InferError::Run(RunError::Contract { .. }) => "contract",
            InferError::Run(RunError::Length { .. }) => "shape",
            InferError::Run(RunError::Engine(_)) => "engine",
        };
        self.failed.get_or_create(&Failure { model: model.to_owned(), reason }).inc();
    }
}

pub(super) async fn text(State(service): State<Service>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &service.metrics.registry) {
        Ok(()) => ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => super::refuse(axum::http::StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}
