//! What is said of the server and its models: metadata, configuration and statistics, in the words of the protocol's JSON.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use farlight_release::manifest::{BatchAxis, Datatype};
use serde::Serialize;

use super::request::{MAX_BATCH, specs};
use super::{Service, answer};
use crate::metrics::Stage;
use crate::models::{Entry, InferError, Loaded};

/// The server.
#[derive(Debug, Serialize)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) extensions: &'static [&'static str],
}

/// This one.
pub(crate) const SERVER: Server = Server {
    name: "farlight",
    version: env!("CARGO_PKG_VERSION"),
    extensions: &[
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "model_repository(unload_dependents)",
        "parameters",
        "schedule_policy",
        "sequence",
        "statistics",
    ],
};

/// A model's inputs and outputs.
#[derive(Debug, Serialize)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) versions: Vec<String>,
    pub(crate) platform: String,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
}

/// An input or output with the batch.
#[derive(Debug, Serialize)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) datatype: &'static str,
    /// -1 for an axis of any size.
    pub(crate) shape: Vec<i64>,
}

/// The model configuration extension: what a client needs to know to send requests well.
#[derive(Debug, Serialize)]
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) platform: String,
    pub(crate) backend: &'static str,
    /// 0 for a model without a batch.
    pub(crate) max_batch_size: usize,
    pub(crate) input: Vec<ConfigPort>,
    pub(crate) output: Vec<ConfigPort>,
    pub(crate) instance_group: [InstanceGroup; 1],
    pub(crate) default_model_filename: &'static str,
    pub(crate) parameters: BTreeMap<&'static str, ConfigParameter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dynamic_batching: Option<DynamicBatching>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sequence_batching: Option<SequenceBatching>,
}

/// An input or output without the batch.
#[derive(Debug, Serialize)]
pub(crate) struct ConfigPort {
    pub(crate) name: String,
    /// `TYPE_…`.
    pub(crate) data_type: String,
    pub(crate) dims: Vec<i64>,
}

/// Where a model runs.
#[derive(Debug, Serialize)]
pub(crate) struct InstanceGroup {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) count: usize,
}

/// A parameter of a model.
#[derive(Debug, Serialize)]
pub(crate) struct ConfigParameter {
    pub(crate) string_value: String,
}

/// How requests are run together.
#[derive(Debug, Serialize)]
pub(crate) struct DynamicBatching {
    pub(crate) preferred_batch_size: [usize; 1],
    pub(crate) max_queue_delay_microseconds: u64,
}

/// That a model has streams.
#[derive(Debug, Serialize)]
pub(crate) struct SequenceBatching {
    pub(crate) max_sequence_idle_microseconds: u64,
}

/// The statistics extension: what a release did since it was loaded.
#[derive(Debug, Serialize)]
pub(crate) struct Statistics {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Milliseconds since 1970.
    pub(crate) last_inference: u64,
    pub(crate) inference_count: u64,
    pub(crate) execution_count: u64,
    pub(crate) inference_stats: Stages,
    /// Kept for no size of batch.
    pub(crate) batch_stats: [(); 0],
}

/// How often each stage was passed, and the time it took.
#[derive(Debug, Serialize)]
pub(crate) struct Stages {
    pub(crate) success: Count,
    pub(crate) fail: Count,
    pub(crate) queue: Count,
    pub(crate) compute_input: Count,
    pub(crate) compute_infer: Count,
    pub(crate) compute_output: Count,
    pub(crate) cache_hit: Count,
    pub(crate) cache_miss: Count,
}

/// A number of times and the time they took.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Count {
    pub(crate) count: u64,
    pub(crate) ns: u64,
}

impl Count {
    fn new(count: u64, time: Duration) -> Self {
        Self { count, ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) }
    }
}

/// Whether a model can answer.
pub(crate) fn ready(service: &Service) -> bool {
    !service.models.list().is_empty()
}

/// What is loaded of a model, the active release first.
pub(crate) fn versions(entry: &Entry) -> Vec<Arc<Loaded>> {
    std::iter::once(&entry.active).chain(&entry.previous).cloned().collect()
}

pub(crate) fn version_of(loaded: &Loaded) -> String {
    loaded.slot.release.version.to_string()
}

/// Inputs and outputs of a release.
pub(crate) fn model(service: &Service, loaded: &Loaded) -> Model {
    let manifest = &loaded.manifest;
    let name = manifest.release.model.to_string();
    let known = service.models.list().into_iter().find(|(model, _)| *model == name);
    let versions = known.iter().flat_map(|(_, entry)| versions(entry)).map(|l| version_of(&l)).collect();
    let batch = (manifest.batch_axis == BatchAxis::Leading).then_some(-1);
    let batched = |shape: &[usize]| batch.into_iter().chain(shape.iter().map(|size| *size as i64)).collect();
    let inputs = specs(manifest).map(|spec| Port {
        name: spec.name.clone(),
        datatype: spec.datatype.name(),
        shape: batched(&spec.shape),
    });
    let outputs = answer::describe(manifest, loaded.outputs()).into_iter();
    let outputs =
        outputs.map(|(name, datatype, shape)| Port { name, datatype: datatype.name(), shape }).collect();
    Model { versions, platform: platform(loaded), inputs: inputs.collect(), outputs, name }
}

fn platform(loaded: &Loaded) -> String {
    format!("onnx_{}", loaded.engine())
}

/// The configuration of a release.
pub(crate) fn config(loaded: &Loaded) -> Config {
    let manifest = &loaded.manifest;
    let policy = loaded.policy();
    let kind = |datatype: Datatype| match datatype {
        Datatype::Bytes => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{}", other.name()),
    };
    let leading = manifest.batch_axis == BatchAxis::Leading;
    let input = specs(manifest).map(|spec| ConfigPort {
        name: spec.name.clone(),
        data_type: kind(spec.datatype),
        dims: spec.shape.iter().map(|size| *size as i64).collect(),
    });
    let outputs = answer::describe(manifest, loaded.outputs()).into_iter();
    let output = outputs.map(|(name, datatype, shape)| ConfigPort {
        name,
        data_type: kind(datatype),
        dims: shape.into_iter().skip(usize::from(leading)).collect(),
    });
    let parameter = |value: String| ConfigParameter { string_value: value };
    Config {
        name: manifest.release.model.to_string(),
        platform: platform(loaded),
        backend: loaded.engine(),
        max_batch_size: if leading { MAX_BATCH } else { 0 },
        input: input.collect(),
        output: output.collect(),
        instance_group: [InstanceGroup { name: "cpu", kind: "KIND_CPU", count: policy.workers }],
        default_model_filename: "model.onnx",
        parameters: BTreeMap::from([
            ("queue", parameter(policy.queue.to_string())),
            ("engine_provider", parameter(loaded.provider().unwrap_or_default().to_owned())),
            ("engine_refused", parameter(loaded.refused().join("; "))),
            ("deadline_us", parameter(policy.deadline.as_micros().to_string())),
        ]),
        dynamic_batching: (policy.batch > 1).then_some(DynamicBatching {
            preferred_batch_size: [policy.batch],
            max_queue_delay_microseconds: policy.window.as_micros() as u64,
        }),
        sequence_batching: loaded
            .has_state()
            .then_some(SequenceBatching { max_sequence_idle_microseconds: 0 }),
    }
}

/// Statistics of all that is loaded of a model, or of one version; of all models when none is named.
pub(crate) fn statistics(
    service: &Service,
    model: Option<&str>,
    version: Option<&str>,
) -> Result<Vec<Statistics>, InferError> {
    let Some(model) = model else {
        let loads = service.models.list().into_iter().flat_map(|(_, entry)| versions(&entry));
        return Ok(loads.map(|loaded| statistics_of(&loaded)).collect());
    };
    if version.is_some() {
        return Ok(vec![statistics_of(&*service.models.find(model, version)?)]);
    }
    let known = service.models.list().into_iter().find(|(name, _)| name == model);
    let (_, entry) = known.ok_or_else(|| InferError::Unknown(model.to_owned()))?;
    Ok(versions(&entry).iter().map(|loaded| statistics_of(loaded)).collect())
}

fn statistics_of(loaded: &Loaded) -> Statistics {
    let metrics = &loaded.metrics;
    let stage = |stage| {
        let histogram = metrics.stage(stage);
        Count::new(histogram.count(), histogram.total())
    };
    let failed = metrics.failures().map(|(_, count)| count).sum();
    Statistics {
        name: loaded.slot.release.model.to_string(),
        version: version_of(loaded),
        last_inference: metrics.last(),
        inference_count: metrics.answers(),
        execution_count: metrics.executions(),
        inference_stats: Stages {
            success: stage(Stage::Request),
            fail: Count::new(failed, metrics.failed_time()),
            queue: stage(Stage::Queue),
            compute_input: stage(Stage::Pre),
            compute_infer: stage(Stage::Infer),
            compute_output: stage(Stage::Post),
            cache_hit: Count::default(),
            cache_miss: Count::default(),
        },
        batch_stats: [],
    }
}
