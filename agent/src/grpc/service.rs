//! The methods of `inference.GRPCInferenceService`. Each reads its message, asks what HTTP asks, and writes the answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::proto::grpc_inference_service_server::GrpcInferenceService;
use super::proto::*;
use super::{request, response};
use crate::connections::stopped;
use crate::protocol::infer::{Call, answer};
use crate::protocol::{Refusal, Service, metadata, repository};

type Answered<T> = Result<Response<T>, Status>;

/// The methods and what they ask.
pub(super) struct Methods {
    pub(super) service: Arc<Service>,
    /// Turns true when the agent stops.
    pub(super) shutdown: watch::Receiver<bool>,
}

/// A name that may be left out.
fn named(name: &str) -> Option<&str> {
    (!name.is_empty()).then_some(name)
}

/// What a client sends beside its messages.
#[derive(Debug, Clone)]
struct Wishes {
    /// When it goes away, from `grpc-timeout`.
    until: Option<Instant>,
    trace: Option<String>,
}

impl Wishes {
    fn of(metadata: &MetadataMap) -> Self {
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
        let timeout = text("grpc-timeout").and_then(timeout);
        Self {
            until: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            trace: text("traceparent").map(str::to_owned),
        }
    }
}

/// The value of `grpc-timeout`: up to 8 digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

async fn infer(
    service: &Service,
    wishes: &Wishes,
    request: ModelInferRequest,
) -> Result<ModelInferResponse, Refusal> {
    let arrived = Instant::now();
    let model = request.model_name.clone();
    let door = service.router.door(&model, named(&request.model_version))?;
    let mut asked = request::read(&door.loaded.manifest, request).map_err(Refusal::wrong)?;
    if let Some(until) = wishes.until {
        let left = until.saturating_duration_since(arrived);
        asked.timeout = Some(asked.timeout.map_or(left, |own| own.min(left)));
    }
    let call = Call { model: &model, arrived, trace: wishes.trace.as_deref() };
    let answer = answer(service, &door, call, asked).await?;
    Ok(response::answer(model, answer))
}

#[tonic::async_trait]
impl GrpcInferenceService for Methods {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Answered<ServerLiveResponse> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Answered<ServerReadyResponse> {
        Ok(Response::new(ServerReadyResponse { ready: metadata::ready(&self.service) }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Answered<ModelReadyResponse> {
        let ModelReadyRequest { name, version } = request.get_ref();
        // One that is not there is not ready: clients ask this until it is.
        let ready = self.service.router.door(name, named(version)).is_ok();
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Answered<ServerMetadataResponse> {
        let metadata::Server { name, version, extensions } = metadata::SERVER;
        Ok(Response::new(ServerMetadataResponse {
            name: name.to_owned(),
            version: version.to_owned(),
            extensions: extensions.iter().map(|extension| (*extension).to_owned()).collect(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Answered<ModelMetadataResponse> {
        let ModelMetadataRequest { name, version } = request.get_ref();
        let door = self.service.router.door(name, named(version)).map_err(Refusal::from)?;
        Ok(Response::new(metadata::model(&self.service, &door.loaded).into()))
    }

    async fn model_config(&self, request: Request<ModelConfigRequest>) -> Answered<ModelConfigResponse> {
        let ModelConfigRequest { name, version } = request.get_ref();
        let door = self.service.router.door(name, named(version)).map_err(Refusal::from)?;
        Ok(Response::new(ModelConfigResponse { config: Some(metadata::config(&door.loaded).into()) }))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Answered<ModelStatisticsResponse> {
        let ModelStatisticsRequest { name, version } = request.get_ref();
        let all = metadata::statistics(&self.service, named(name), named(version)).map_err(Refusal::from)?;
        let model_stats = all.into_iter().map(Into::into).collect();
        Ok(Response::new(ModelStatisticsResponse { model_stats }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Answered<ModelInferResponse> {
        let wishes = Wishes::of(request.metadata());
        Ok(Response::new(infer(&self.service, &wishes, request.into_inner()).await?))
    }

    type ModelStreamInferStream = BoxStream<'static, Result<ModelStreamInferResponse, Status>>;

    /// Answers the requests of a stream one after the other. What is wrong with one ends that one alone.
    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Answered<Self::ModelStreamInferStream> {
        let wishes = Wishes::of(request.metadata());
        let service = Arc::clone(&self.service);
        let requests = request.into_inner().take_until(stopped(self.shutdown.clone()));
        let answers = requests.then(move |request| {
            let (service, wishes) = (Arc::clone(&service), wishes.clone());
            async move {
                let request = request?;
                let (model_name, id) = (request.model_name.clone(), request.id.clone());
                Ok(match infer(&service, &wishes, request).await {
                    Ok(answer) => ModelStreamInferResponse {
                        error_message: String::new(),
                        infer_response: Some(answer),
                    },
                    Err(refusal) => {
                        let about = ModelInferResponse { model_name, id, ..ModelInferResponse::default() };
                        ModelStreamInferResponse {
                            error_message: refusal.message,
                            infer_response: Some(about),
                        }
                    }
                })
            }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Answered<RepositoryIndexResponse> {
        let all = repository::index(&self.service, request.get_ref().ready);
        Ok(Response::new(RepositoryIndexResponse { models: all.into_iter().map(Into::into).collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Answered<RepositoryModelLoadResponse> {
        let RepositoryModelLoadRequest { model_name, parameters, .. } = request.get_ref();
        let parameter = parameters.keys().next().map(String::as_str);
        repository::load(&self.service, model_name, parameter).await?;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Answered<RepositoryModelUnloadResponse> {
        repository::unload(&self.service, &request.get_ref().model_name).await?;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3_600))),
            ("250m", Some(Duration::from_millis(250))),
            ("0u", Some(Duration::ZERO)),
            ("100000000n", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("-1S", None),
            ("1ä", None),
            ("1s", None),
        ] {
            assert_eq!(timeout(text), expected, "{text}");
        }
    }
}
