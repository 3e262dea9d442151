//! `GET /metrics` for Prometheus, in the text format of OpenMetrics. Durations are histograms in seconds.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::Service;
use super::metadata::{version_of, versions};
use crate::metrics::Stage;
use crate::models::{Loaded, Models};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Release {
    model: String,
    version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    model: String,
    version: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    model: String,
    version: String,
    stage: &'static str,
}

/// Reads what the loaded releases counted.
struct Loads(Arc<Models>);

impl std::fmt::Debug for Loads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Loads")
    }
}

type Counted = fn(&Loaded) -> u64;

const COUNTERS: [(&str, &str, Counted); 2] = [
    ("inferences", "Inputs answered", |loaded| loaded.metrics.answers()),
    ("executions", "Runs of the engine; fewer than inputs where they are run together", |loaded| {
        loaded.metrics.executions()
    }),
];

const GAUGES: [(&str, &str, Counted); 2] = [
    ("waiting_requests", "Requests that wait for a worker", |loaded| loaded.waiting() as u64),
    ("open_streams", "Streams whose state is kept", |loaded| loaded.streams() as u64),
];

impl Collector for Loads {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let loads: Vec<(Release, Arc<Loaded>)> = self
            .0
            .list()
            .iter()
            .flat_map(|(_, entry)| versions(entry))
            .map(|loaded| {
                let model = loaded.slot.release.model.to_string();
                (Release { model, version: version_of(&loaded) }, loaded)
            })
            .collect();
        for (name, help, count) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (label, loaded) in &loads {
                metric.encode_family(label)?.encode_counter::<NoLabelSet, u64, u64>(&count(loaded), None)?;
            }
        }
        for (name, help, count) in GAUGES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (label, loaded) in &loads {
                metric.encode_family(label)?.encode_gauge(&count(loaded))?;
            }
        }
        let help = "Requests not answered, by reason";
        let mut metric = encoder.encode_descriptor("inference_failures", help, None, MetricType::Counter)?;
        for (Release { model, version }, loaded) in &loads {
            for (reason, count) in loaded.metrics.failures() {
                let (model, version, reason) = (model.clone(), version.clone(), reason.name());
                let label = Failure { model, version, reason };
                metric.encode_family(&label)?.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            }
        }
        let help = "Time of an answered input in each stage, and in all of them (stage request)";
        let mut metric =
            encoder.encode_descriptor("stage_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (Release { model, version }, loaded) in &loads {
            for stage in Stage::ALL {
                let histogram = loaded.metrics.stage(stage);
                let (model, version, stage) = (model.clone(), version.clone(), stage.name());
                let buckets = histogram.buckets();
                let count = buckets.iter().map(|(_, count)| count).sum();
                let label = Part { model, version, stage };
                metric.encode_family(&label)?.encode_histogram::<NoLabelSet>(
                    histogram.total().as_secs_f64(),
                    count,
                    &buckets,
                    None,
                )?;
            }
        }
        Ok(())
    }
}

pub(super) async fn text(State(service): State<Service>) -> Response {
    let mut registry = Registry::with_prefix("farlight");
    registry.register_collector(Box::new(Loads(Arc::clone(&service.models))));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => super::refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}
