//! The gRPC form of the inference service of a real agent: the same answers as over HTTP, streams of requests, malformed
//! messages, overload, cancellation, and a stop with a stream open.
use std::time::Duration;

use bytes::{BufMut, Bytes};
use farlight_agent::grpc::codec::Wire;
use farlight_agent::grpc::proto::infer_parameter::ParameterChoice;
use farlight_agent::grpc::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use farlight_agent::grpc::proto::*;
use farlight_test_support::{Device, DeviceOptions, Fleet, Graph, MODEL, until, until_looked};
use futures_util::{StreamExt, stream};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tonic::client::{Grpc, GrpcService};
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::{Code, Request, Response, Status, Streaming};

const WAIT: Duration = Duration::from_secs(60);
/// How often to look for what lasts no longer than one inference of the slow model.
const OFTEN: Duration = Duration::from_millis(5);

/// A client with one connection.
#[derive(Clone)]
struct Client(hyper::client::conn::http2::SendRequest<tonic::body::Body>);

impl Client {
    async fn of(device: &Device) -> Self {
        let stream = tokio::net::TcpStream::connect(&device.grpc_address).await.unwrap();
        // As clients of gRPC do: otherwise what follows a header may wait 40 ms, as long as the slow model on a fast machine.
        stream.set_nodelay(true).unwrap();
        let connection = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = connection.await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    fn path(method: &str) -> hyper::http::uri::PathAndQuery {
        format!("/inference.GRPCInferenceService/{method}").parse().unwrap()
    }

    fn grpc(
        &self,
    ) -> Grpc<impl GrpcService<tonic::body::Body, ResponseBody = Incoming, Future: Send> + use<>> {
        let sender = self.0.clone();
        Grpc::new(tower::service_fn(move |mut request: hyper::Request<tonic::body::Body>| {
            let uri = format!("http://agent{}", request.uri().path());
            *request.uri_mut() = uri.parse().unwrap();
            sender.clone().send_request(request)
        }))
    }

    /// Calls a method by its name.
    async fn call<C>(
        &self,
        method: &str,
        codec: C,
        request: Request<C::Encode>,
    ) -> Result<Response<C::Decode>, Status>
    where
        C: Codec,
        C::Encode: Sync,
        C::Decode: Sync,
    {
        self.grpc().unary(request, Self::path(method), codec).await
    }

    async fn ask<T, U>(&self, method: &str, message: T) -> Result<U, Status>
    where
        T: Message + 'static,
        U: Message + Default + 'static,
    {
        self.call(method, Wire::default(), Request::new(message)).await.map(Response::into_inner)
    }

    async fn infer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, Status> {
        self.ask("ModelInfer", request).await
    }

    async fn stream(
        &self,
        requests: mpsc::Receiver<ModelInferRequest>,
    ) -> Streaming<ModelStreamInferResponse> {
        let requests =
            stream::unfold(requests, async |mut requests| Some((requests.recv().await?, requests)));
        let codec = Wire::<ModelInferRequest, ModelStreamInferResponse>::default();
        let mut grpc = self.grpc();
        let answers = grpc.streaming(Request::new(requests), Self::path("ModelStreamInfer"), codec).await;
        answers.unwrap().into_inner()
    }
}

/// Sends bytes that need not be a message.
#[derive(Default)]
struct Junk;

impl Codec for Junk {
    type Encode = Bytes;
    type Decode = ModelInferResponse;
    type Encoder = Self;
    type Decoder = Wire<ModelInferRequest, ModelInferResponse>;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        Wire::default()
    }
}

impl Encoder for Junk {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

/// A request of one FP32 input, typed.
fn request(model: &str, shape: &[i64], data: &[f32]) -> ModelInferRequest {
    let contents = InferTensorContents { fp32_contents: data.to_vec(), ..Default::default() };
    let input = InferInputTensor {
        name: "x".to_owned(),
        datatype: "FP32".to_owned(),
        shape: shape.to_vec(),
        contents: Some(contents),
        ..Default::default()
    };
    ModelInferRequest { model_name: model.to_owned(), inputs: vec![input], ..Default::default() }
}

/// The same, raw.
fn raw(mut request: ModelInferRequest) -> ModelInferRequest {
    let contents = request.inputs.iter_mut().map(|input| input.contents.take().unwrap().fp32_contents);
    let bytes = |data: Vec<f32>| data.iter().flat_map(|x| x.to_le_bytes()).collect();
    request.raw_input_contents = contents.map(bytes).collect();
    request
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

async fn begun(http: &str) -> (Fleet, Device) {
    let options = DeviceOptions {
        grpc: true,
        http: http.to_owned(),
        extra: "[inference]\nmodel.slow = { workers = 1, queue = 1, deadline_ms = 60000 }\n".to_owned(),
        ..DeviceOptions::default()
    };
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.device("gw-1", &options).await.unwrap();
    (fleet, device)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_http_in_the_form_of_the_request() {
    let (fleet, device) = begun("model_control = true").await;
    let client = Client::of(&device).await;
    let ready: ServerReadyResponse = client.ask("ServerReady", ServerReadyRequest {}).await.unwrap();
    assert!(!ready.ready);
    fleet.publish("1.0.0").await.unwrap();
    fleet.runs(&device, MODEL, "1.0.0").await.unwrap();
    let live: ServerLiveResponse = client.ask("ServerLive", ServerLiveRequest {}).await.unwrap();
    let ready: ServerReadyResponse = client.ask("ServerReady", ServerReadyRequest {}).await.unwrap();
    assert!(live.live && ready.ready);
    for (version, is) in [("", true), ("1.0.0", true), ("9.9.9", false)] {
        let asked = ModelReadyRequest { name: MODEL.to_owned(), version: version.to_owned() };
        assert_eq!(client.ask::<_, ModelReadyResponse>("ModelReady", asked).await.unwrap().ready, is);
    }

    let data: Vec<f32> = (0..1_200_u16).map(|i| f32::from(i % 17) / 17.0).collect();
    let mut typed = request(MODEL, &[2, 6, 100], &data);
    typed.id = "a".to_owned();
    let body = json!({ "inputs": [{ "name": "x", "shape": [2, 6, 100], "datatype": "FP32", "data": data }] });
    let http = device.client().post(format!("http://agent/v2/models/{MODEL}/infer")).body(body.to_string());
    let http: Value = http.send().await.unwrap().json().await.unwrap();
    let scores: Vec<f32> = serde_json::from_value(http["outputs"][0]["data"].clone()).unwrap();
    let labels: Vec<Bytes> = serde_json::from_value::<Vec<String>>(http["outputs"][1]["data"].clone())
        .unwrap()
        .into_iter()
        .map(Bytes::from)
        .collect();

    let answer = client.infer(typed.clone()).await.unwrap();
    assert_eq!(
        (answer.id.as_str(), answer.model_name.as_str(), answer.model_version.as_str()),
        ("a", MODEL, "1.0.0")
    );
    assert!(answer.raw_output_contents.is_empty());
    let [given, label] = &answer.outputs[..] else { panic!("{answer:?}") };
    assert_eq!((given.name.as_str(), &given.shape[..]), ("scores", &[2, 7][..]));
    assert_eq!(given.contents.as_ref().unwrap().fp32_contents, scores);
    assert_eq!(label.contents.as_ref().unwrap().bytes_contents, labels);

    let mut asked = raw(typed);
    let output = |name: &str, classes| InferRequestedOutputTensor {
        name: name.to_owned(),
        parameters: [("classification".to_owned(), parameter(ParameterChoice::Int64Param(classes)))].into(),
    };
    asked.model_version = "1.0.0".to_owned();
    asked.outputs = vec![output("label", 0), output("scores", 0)];
    let answer = client.infer(asked.clone()).await.unwrap();
    let bytes: Vec<u8> = scores.iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(answer.outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["label", "scores"]);
    assert_eq!(answer.raw_output_contents[1], bytes);
    assert_eq!(&answer.raw_output_contents[0][..4], (labels[0].len() as u32).to_le_bytes());
    asked.outputs = vec![output("scores", 2)];
    let answer = client.infer(asked).await.unwrap();
    assert_eq!((answer.outputs[0].datatype.as_str(), &answer.outputs[0].shape[..]), ("BYTES", &[2, 2][..]));

    let named = |version: &str| (MODEL.to_owned(), version.to_owned());
    let (name, version) = named("");
    let model: ModelMetadataResponse =
        client.ask("ModelMetadata", ModelMetadataRequest { name, version }).await.unwrap();
    assert_eq!((model.versions, &model.inputs[0].shape[..]), (vec!["1.0.0".to_owned()], &[-1, 6, 100][..]));
    let (name, version) = named("1.0.0");
    let config: ModelConfigResponse =
        client.ask("ModelConfig", ModelConfigRequest { name, version }).await.unwrap();
    let config = config.config.unwrap();
    assert!(config.max_batch_size > 1 && config.input[0].data_type() == DataType::TypeFp32);
    assert_eq!(config.output[1].data_type(), DataType::TypeString);
    let all: ModelStatisticsResponse =
        client.ask("ModelStatistics", ModelStatisticsRequest::default()).await.unwrap();
    assert_eq!(all.model_stats[0].inference_count, 8, "two items each time");

    let repository_name = String::new;
    let index = async |ready| {
        let asked = RepositoryIndexRequest { repository_name: repository_name(), ready };
        let index: RepositoryIndexResponse = client.ask("RepositoryIndex", asked).await.unwrap();
        index.models.into_iter().map(|model| model.state).collect::<Vec<_>>()
    };
    assert_eq!(index(false).await, ["READY"]);
    let (model_name, parameters) = (MODEL.to_owned(), Default::default());
    let unload = RepositoryModelUnloadRequest { repository_name: repository_name(), model_name, parameters };
    client.ask::<_, RepositoryModelUnloadResponse>("RepositoryModelUnload", unload).await.unwrap();
    assert!(index(true).await.is_empty() && index(false).await == ["UNAVAILABLE"]);
    let (model_name, parameters) = (MODEL.to_owned(), Default::default());
    let load = RepositoryModelLoadRequest { repository_name: repository_name(), model_name, parameters };
    client.ask::<_, RepositoryModelLoadResponse>("RepositoryModelLoad", load).await.unwrap();
    assert_eq!(index(true).await, ["READY"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_has_its_code_and_no_bytes_end_the_agent() {
    let (fleet, device) = begun("max_body_bytes = 65536").await;
    fleet.publish("1.0.0").await.unwrap();
    fleet.runs(&device, MODEL, "1.0.0").await.unwrap();
    let client = Client::of(&device).await;
    let good = request(MODEL, &[1, 6, 100], &[0.1; 600]);
    let with = |change: &dyn Fn(&mut ModelInferRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    for (request, code, part) in [
        (with(&|r| r.model_name = "nope".into()), Code::NotFound, "nope"),
        (with(&|r| r.model_version = "9.9.9".into()), Code::NotFound, "9.9.9"),
        (with(&|r| r.inputs.clear()), Code::InvalidArgument, "missing"),
        (with(&|r| r.inputs[0].contents = None), Code::InvalidArgument, "neither"),
        (with(&|r| r.inputs[0].shape = vec![-1, 6, 100]), Code::InvalidArgument, "shape"),
        (with(&|r| r.inputs[0].shape = vec![i64::MAX, 6, 100]), Code::InvalidArgument, "batch"),
        (with(&|r| r.inputs[0].shape = vec![i64::MAX; 8]), Code::InvalidArgument, "shape"),
        (with(&|r| r.inputs[0].datatype = "FP16".into()), Code::InvalidArgument, "datatype"),
        (
            with(&|r| r.outputs = vec![InferRequestedOutputTensor::default()]),
            Code::InvalidArgument,
            "unknown",
        ),
        (raw(with(&|r| r.inputs[0].shape = vec![2, 6, 100])), Code::InvalidArgument, "600 elements"),
        (with(&|r| r.raw_input_contents = vec![Bytes::new(); 3]), Code::InvalidArgument, "3 entries"),
        (
            with(&|r| {
                r.parameters.insert("sequence_id".into(), parameter(ParameterChoice::Int64Param(3)));
            }),
            Code::InvalidArgument,
            "sequence_id",
        ),
    ] {
        let error = client.infer(request).await.unwrap_err();
        assert!(error.code() == code && error.message().contains(part), "{part}: {error:?}");
    }
    // The beginning of a message, nothing but a length, noise.
    let mut noise = 1_u32;
    let mut random = || {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    };
    let cut = good.encode_to_vec();
    let mut junk =
        vec![Bytes::from(cut[..cut.len() / 2].to_vec()), Bytes::from_static(&[0x2a, 0xff, 0xff, 0xff, 0x7f])];
    junk.extend((1..40).map(|length| (0..length).map(|_| random()).collect()));
    for bytes in junk {
        // Some noise is a message, of no model.
        let error = client.call("ModelInfer", Junk, Request::new(bytes)).await.unwrap_err();
        assert!(matches!(error.code(), Code::InvalidArgument | Code::NotFound), "{error:?}");
    }
    let large = request(MODEL, &[1, 6, 100], &[0.1; 20_000]);
    assert_eq!(client.infer(large).await.unwrap_err().code(), Code::OutOfRange);
    let missing =
        client.ask::<_, ServerLiveResponse>("TraceSetting", ServerLiveRequest {}).await.unwrap_err();
    assert!(missing.code() == Code::Unimplemented && missing.message().contains("not served"), "{missing:?}");
    let (repository_name, model_name, parameters) = (String::new(), MODEL.to_owned(), Default::default());
    let unload = RepositoryModelUnloadRequest { repository_name, model_name, parameters };
    let refused = client.ask::<_, RepositoryModelUnloadResponse>("RepositoryModelUnload", unload).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    client.infer(good).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_requests_has_one_state_and_survives_what_is_wrong_and_ends_with_the_agent() {
    let (fleet, mut device) = begun("").await;
    fleet.install(&device, &Graph::counter().unwrap(), "1.0.0").await.unwrap();
    let client = Client::of(&device).await;
    let (sender, requests) = mpsc::channel(4);
    let mut answers = client.stream(requests).await;
    let mut sum = 0.0;
    for x in [1.0, 2.0, 3.0] {
        let mut one = request("counter", &[1], &[x]);
        one.parameters.insert("sequence_id".into(), parameter(ParameterChoice::StringParam("s".into())));
        sender.send(one).await.unwrap();
        let answer = answers.next().await.unwrap().unwrap();
        assert_eq!(answer.error_message, "");
        sum += x;
        let output = answer.infer_response.unwrap().outputs.remove(0);
        assert_eq!(output.contents.unwrap().fp32_contents, [sum]);

        let mut wrong = request("nope", &[1], &[x]);
        wrong.id = "w".to_owned();
        sender.send(wrong).await.unwrap();
        let answer = answers.next().await.unwrap().unwrap();
        assert!(answer.error_message.contains("nope"), "{answer:?}");
        assert_eq!(answer.infer_response.unwrap().id, "w");
    }
    // It does not hold up the end of the agent, which gives tasks ten seconds and says when that was not enough.
    device.stop().await.unwrap();
    assert!(answers.next().await.is_none_or(|last| last.is_err()));
    let log = std::fs::read_to_string(device.folder().join("agent.log")).unwrap();
    assert!(!log.contains("did not end in time"), "{log}");
    drop(sender);
}

/// Requests that wait for the slow model.
async fn waiting(device: &Device) -> anyhow::Result<u64> {
    let text = device.client().get("http://agent/metrics").send().await?.text().await?;
    let line = text.lines().find(|line| line.contains("waiting_requests{") && line.contains("\"slow\""));
    Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
}

/// How often the slow model ran.
async fn executions(client: &Client) -> u64 {
    let asked = ModelStatisticsRequest { name: "slow".to_owned(), version: String::new() };
    let all: ModelStatisticsResponse = client.ask("ModelStatistics", asked).await.unwrap();
    all.model_stats[0].execution_count
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_place_is_told_when_to_come_again_and_who_leaves_makes_room() {
    let (fleet, device) = begun("").await;
    fleet.install(&device, &Graph::slow().unwrap(), "1.0.0").await.unwrap();
    let client = Client::of(&device).await;
    let one = || request("slow", &[1], &[1.0]);
    let start = || {
        let client = client.clone();
        tokio::spawn(async move { client.infer(one()).await })
    };
    // One runs, one waits; more are turned away. The one that waits goes, and its place is free before the first is done.
    until("a place becomes free by leaving", WAIT, async || {
        let before = executions(&client).await;
        let (runs, waits) = (start(), start());
        let full = until_looked("one waits", OFTEN, WAIT, async || {
            let done = runs.is_finished() || waits.is_finished();
            Ok((waiting(&device).await? > 0).then_some(true).or(done.then_some(false)))
        });
        let mut freed = None;
        if full.await? {
            let refused = client.infer(one()).await;
            waits.abort();
            let gone = async || Ok((waiting(&device).await? == 0).then_some(()));
            let left = until_looked("it leaves", OFTEN, WAIT, gone);
            left.await?;
            // The client's own deadline counts: nobody else asks for less than a minute.
            let mut hurried = Request::new(one());
            hurried.set_timeout(Duration::from_millis(1));
            let codec = Wire::<ModelInferRequest, ModelInferResponse>::default();
            let late = client.call("ModelInfer", codec, hurried).await;
            let running = !runs.is_finished() && executions(&client).await == before;
            // Where the second came first, or the machine stood still, one was done before: then once more.
            if let (Err(status), true) = (refused, running) {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(status.message().contains("busy"), "{status:?}");
                let seconds = status.metadata().get("retry-after").unwrap().to_str().unwrap().parse::<u64>();
                assert!(seconds.unwrap() >= 1);
                let late = late.unwrap_err();
                assert!(late.message().contains("deadline"), "{late:?}");
                assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Unavailable), "{late:?}");
                freed = Some(());
            }
        }
        runs.await?.unwrap();
        Ok(freed)
    })
    .await
    .unwrap();
    client.infer(one()).await.unwrap();
}
