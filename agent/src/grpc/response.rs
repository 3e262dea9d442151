//! Answers over gRPC: tensors, what is said of models, and refusals as status codes.

use std::collections::HashMap;

use bytes::Bytes;
use farlight_inference::Values;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::proto;
use super::proto::infer_parameter::ParameterChoice;
use super::proto::model_config::SchedulingChoice;
use super::proto::model_infer_response::InferOutputTensor;
use super::request::field;
use crate::protocol::answer::Given;
use crate::protocol::infer::Answer;
use crate::protocol::metadata::{Config, ConfigPort, Count, Model, Port, Statistics};
use crate::protocol::repository::Installed;
use crate::protocol::{Kind, Refusal, binary};

/// The answer to a request for what the client called `model`: all tensors raw, or all in the fields of their types. One
/// without a field makes all raw.
pub(super) fn answer(model: String, answer: Answer) -> proto::ModelInferResponse {
    let Answer { id, version, stage, outputs } = answer;
    let raw = outputs.iter().any(|given| given.binary || field(given.tensor.values.datatype()).is_none());
    let mut raw_output_contents = Vec::with_capacity(if raw { outputs.len() } else { 0 });
    let output = |given: Given| {
        let Given { name, tensor, .. } = given;
        let datatype = tensor.values.datatype().name().to_owned();
        let shape = tensor.shape.iter().map(|size| *size as i64).collect();
        let contents = match raw {
            true => {
                let mut bytes = Vec::new();
                binary::write(&tensor.values, &mut bytes);
                raw_output_contents.push(Bytes::from(bytes));
                None
            }
            false => Some(contents(tensor.values)),
        };
        InferOutputTensor { name, datatype, shape, parameters: HashMap::new(), contents }
    };
    let outputs = outputs.into_iter().map(output).collect();
    let stage = stage.map(|stage| {
        let choice = ParameterChoice::StringParam(stage);
        ("stage".to_owned(), proto::InferParameter { parameter_choice: Some(choice) })
    });
    proto::ModelInferResponse {
        model_name: model,
        model_version: version,
        id: id.unwrap_or_default(),
        parameters: stage.into_iter().collect(),
        outputs,
        raw_output_contents,
    }
}

/// Elements in the field of their type; none for FP16, which has no field.
fn contents(values: Values) -> proto::InferTensorContents {
    fn wide<T: Into<U>, U>(values: Vec<T>) -> Vec<U> {
        values.into_iter().map(Into::into).collect()
    }
    let mut contents = proto::InferTensorContents::default();
    match values {
        Values::Bool(v) => contents.bool_contents = v,
        Values::Uint8(v) => contents.uint_contents = wide(v),
        Values::Uint16(v) => contents.uint_contents = wide(v),
        Values::Uint32(v) => contents.uint_contents = v,
        Values::Uint64(v) => contents.uint64_contents = v,
        Values::Int8(v) => contents.int_contents = wide(v),
        Values::Int16(v) => contents.int_contents = wide(v),
        Values::Int32(v) => contents.int_contents = v,
        Values::Int64(v) => contents.int64_contents = v,
        Values::Fp16(_) => {}
        Values::Fp32(v) => contents.fp32_contents = v,
        Values::Fp64(v) => contents.fp64_contents = v,
        Values::Bytes(v) => contents.bytes_contents = wide(v),
    }
    contents
}

impl From<Refusal> for Status {
    /// A full queue is UNAVAILABLE and not RESOURCE_EXHAUSTED: it passes, and UNAVAILABLE is what clients are set up to
    /// try again on. They find when in `retry-after` (seconds, as over HTTP) and, where they retry by themselves, in
    /// `grpc-retry-pushback-ms` (gRPC's proposal A6).
    fn from(refusal: Refusal) -> Self {
        let Refusal { kind, message } = refusal;
        let mut metadata = MetadataMap::new();
        match kind {
            Kind::Wrong => Self::invalid_argument(message),
            Kind::Unknown => Self::not_found(message),
            Kind::Forbidden => Self::permission_denied(message),
            Kind::Engine => Self::internal(message),
            Kind::Late { .. } => Self::deadline_exceeded(message),
            Kind::Unavailable { retry_after } => {
                let seconds = retry_after.as_secs_f64().ceil() as u64;
                let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
                metadata.insert("retry-after", seconds.max(1).into());
                metadata.insert("grpc-retry-pushback-ms", millis.into());
                Self::with_metadata(tonic::Code::Unavailable, message, metadata)
            }
        }
    }
}

impl From<Model> for proto::ModelMetadataResponse {
    fn from(model: Model) -> Self {
        let port = |port: Port| proto::model_metadata_response::TensorMetadata {
            name: port.name,
            datatype: port.datatype.to_owned(),
            shape: port.shape,
        };
        Self {
            name: model.name,
            versions: model.versions,
            platform: model.platform,
            inputs: model.inputs.into_iter().map(port).collect(),
            outputs: model.outputs.into_iter().map(port).collect(),
        }
    }
}

impl From<Config> for proto::ModelConfig {
    fn from(config: Config) -> Self {
        let small = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let kind = |port: &ConfigPort| {
            proto::DataType::from_str_name(&port.data_type).unwrap_or(proto::DataType::TypeInvalid).into()
        };
        let input =
            |port: ConfigPort| proto::ModelInput { data_type: kind(&port), name: port.name, dims: port.dims };
        let output = |port: ConfigPort| proto::ModelOutput {
            data_type: kind(&port),
            name: port.name,
            dims: port.dims,
        };
        let groups = config.instance_group.into_iter().map(|group| proto::ModelInstanceGroup {
            name: group.name.to_owned(),
            count: small(group.count),
            kind: proto::model_instance_group::Kind::from_str_name(group.kind).unwrap_or_default().into(),
        });
        let parameters = config.parameters.into_iter().map(|(name, parameter)| {
            (name.to_owned(), proto::ModelParameter { string_value: parameter.string_value })
        });
        // One or the other here; a model with streams runs none of its requests together.
        let streams = config.sequence_batching.map(|batching| {
            let max_sequence_idle_microseconds = batching.max_sequence_idle_microseconds;
            SchedulingChoice::SequenceBatching(proto::ModelSequenceBatching {
                max_sequence_idle_microseconds,
            })
        });
        let scheduling_choice = streams.or(config.dynamic_batching.map(|batching| {
            SchedulingChoice::DynamicBatching(proto::ModelDynamicBatching {
                preferred_batch_size: batching.preferred_batch_size.into_iter().map(small).collect(),
                max_queue_delay_microseconds: batching.max_queue_delay_microseconds,
            })
        }));
        Self {
            name: config.name,
            platform: config.platform,
            backend: config.backend.to_owned(),
            max_batch_size: small(config.max_batch_size),
            input: config.input.into_iter().map(input).collect(),
            output: config.output.into_iter().map(output).collect(),
            instance_group: groups.collect(),
            default_model_filename: config.default_model_filename.to_owned(),
            parameters: parameters.collect(),
            scheduling_choice,
        }
    }
}

impl From<Statistics> for proto::ModelStatistics {
    fn from(statistics: Statistics) -> Self {
        let count = |count: Count| Some(proto::StatisticDuration { count: count.count, ns: count.ns });
        let stages = statistics.inference_stats;
        Self {
            name: statistics.name,
            version: statistics.version,
            last_inference: statistics.last_inference,
            inference_count: statistics.inference_count,
            execution_count: statistics.execution_count,
            inference_stats: Some(proto::InferStatistics {
                success: count(stages.success),
                fail: count(stages.fail),
                queue: count(stages.queue),
                compute_input: count(stages.compute_input),
                compute_infer: count(stages.compute_infer),
                compute_output: count(stages.compute_output),
                cache_hit: count(stages.cache_hit),
                cache_miss: count(stages.cache_miss),
            }),
        }
    }
}

impl From<Installed> for proto::repository_index_response::ModelIndex {
    fn from(model: Installed) -> Self {
        Self {
            name: model.name,
            version: model.version,
            state: model.state.to_owned(),
            reason: model.reason.to_owned(),
        }
    }
}
