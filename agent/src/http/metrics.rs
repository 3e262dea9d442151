//! `GET /metrics` for Prometheus, in the text format of OpenMetrics. Durations are histograms in seconds.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::Service;
use crate::metrics::{Reason, Stage};
use crate::models::{Loaded, Models};
use crate::protocol::metadata::{version_of, versions};
use crate::router::Router;

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
        let loads = loads(&self.0);
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

/// What a route counts, by the stage that answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    stage: String,
}

struct Routes(Arc<Router>);

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Routes")
    }
}

impl Collector for Routes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let routes = self.0.list();
        if routes.is_empty() {
            return Ok(());
        }
        let help =
            "Requests to a route, by what answered: a stage, cache, split, fallback, or nothing (failed)";
        let mut metric = encoder.encode_descriptor("route_requests", help, None, MetricType::Counter)?;
        for (name, route) in &routes {
            let counts = &route.counts;
            let stages = counts.stages.iter().enumerate().map(|(n, count)| (route.name(n), count));
            let others = [
                ("cache", &counts.cached),
                ("split", &counts.split),
                ("fallback", &counts.rule),
                ("failed", &counts.failed),
            ];
            for (stage, count) in stages.chain(others.map(|(name, count)| (name.to_owned(), count))) {
                let label = Answered { route: name.clone(), stage };
                let count = count.load(Ordering::Relaxed);
                metric.encode_family(&label)?.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            }
        }
        let help = "Times that a stage of a route began to be left out because it failed or was slow";
        let mut metric =
            encoder.encode_descriptor("route_breaker_opened", help, None, MetricType::Counter)?;
        for (name, route) in &routes {
            for stage in 0..route.counts.stages.len() {
                let label = Answered { route: name.clone(), stage: route.name(stage) };
                let opened = route.opened(stage);
                metric.encode_family(&label)?.encode_counter::<NoLabelSet, u64, u64>(&opened, None)?;
            }
        }
        let help = "Answers of a route that its shadow gave as well (agreed) or otherwise (disagreed)";
        let mut metric =
            encoder.encode_descriptor("route_shadow_answers", help, None, MetricType::Counter)?;
        for (name, route) in &routes {
            for (stage, count) in [("agreed", &route.counts.agreed), ("disagreed", &route.counts.disagreed)] {
                let label = Answered { route: name.clone(), stage: stage.to_owned() };
                let count = count.load(Ordering::Relaxed);
                metric.encode_family(&label)?.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            }
        }
        Ok(())
    }
}

/// The counters of NVIDIA Triton by their own names, which have no suffix.
struct Triton(Arc<Models>);

impl std::fmt::Debug for Triton {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Triton")
    }
}

/// A count, or time in µs.
const TRITON: [(&str, &str, Counted); 8] = [
    ("nv_inference_request_success", "Requests answered", |l| l.metrics.answers()),
    ("nv_inference_count", "Inputs answered", |l| l.metrics.answers()),
    ("nv_inference_exec_count", "Runs of the engine", |l| l.metrics.executions()),
    ("nv_inference_pending_request_count", "Requests that wait", |l| l.waiting() as u64),
    ("nv_inference_request_duration_us", "Time of requests", |l| micros(l, Stage::Request)),
    ("nv_inference_queue_duration_us", "Time in the queue", |l| micros(l, Stage::Queue)),
    ("nv_inference_compute_infer_duration_us", "Time of the engine", |l| micros(l, Stage::Infer)),
    ("nv_inference_compute_input_duration_us", "Time before the engine", |l| micros(l, Stage::Pre)),
];

fn micros(loaded: &Loaded, stage: Stage) -> u64 {
    u64::try_from(loaded.metrics.stage(stage).total().as_micros()).unwrap_or(u64::MAX)
}

/// Triton's word for a reason.
fn triton_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Busy | Reason::Off => "REJECTED",
        Reason::Engine => "BACKEND",
        Reason::Contract | Reason::Input => "OTHER",
    }
}

impl Collector for Triton {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let loads = loads(&self.0);
        for (name, help, count) in TRITON {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Unknown)?;
            for (label, loaded) in &loads {
                metric.encode_family(label)?.encode_gauge(&count(loaded))?;
            }
        }
        let help = "Requests not answered";
        let mut metric =
            encoder.encode_descriptor("nv_inference_request_failure", help, None, MetricType::Unknown)?;
        for (Release { model, version }, loaded) in &loads {
            for word in ["REJECTED", "BACKEND", "OTHER"] {
                let of = |(reason, _): &(Reason, u64)| triton_reason(*reason) == word;
                let count: u64 = loaded.metrics.failures().filter(of).map(|(_, count)| count).sum();
                let label = Failure { model: model.clone(), version: version.clone(), reason: word };
                metric.encode_family(&label)?.encode_gauge(&count)?;
            }
        }
        Ok(())
    }
}

/// The releases in memory with their labels.
fn loads(models: &Models) -> Vec<(Release, Arc<Loaded>)> {
    let loads = models.list().into_iter().flat_map(|(_, entry)| versions(&entry));
    let labelled = |loaded: Arc<Loaded>| {
        let model = loaded.slot.release.model.to_string();
        (Release { model, version: version_of(&loaded) }, loaded)
    };
    loads.map(labelled).collect()
}

pub(super) async fn text(State(service): State<Arc<Service>>) -> Response {
    let mut registry = Registry::with_prefix("farlight");
    registry.register_collector(Box::new(Loads(Arc::clone(&service.models))));
    registry.register_collector(Box::new(Routes(Arc::clone(&service.router))));
    let mut text = String::new();
    let mut written = encode_registry(&mut text, &registry);
    if service.triton_metrics {
        let mut aliases = Registry::default();
        aliases.register_collector(Box::new(Triton(Arc::clone(&service.models))));
        written = written.and_then(|()| encode_registry(&mut text, &aliases));
    }
    match written.and_then(|()| encode_eof(&mut text)) {
        Ok(()) => ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => super::refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}
