"""tritonclient[http] against a running agent: FARLIGHT_HTTP is its address. The device serves watch-gestures, types,
counter and slow (see tests/support/src/bin/stage.rs)."""

import http.client
import json
import os

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

MODEL = "watch-gestures"
ADDRESS = os.environ["FARLIGHT_HTTP"]
# As many connections, so that requests run at once.
client = triton.InferenceServerClient(ADDRESS, concurrency=8)


def refused(status, part, call):
    """The call ends with this status and a message that has `part` in it."""
    try:
        result = call()
        if hasattr(result, "get_result"):
            result = result.get_result()
    except InferenceServerException as error:
        assert error.status() == str(status), (error.status(), error.message())
        assert part in error.message(), error.message()
        return
    raise AssertionError(f"was accepted, {status} is due: {part}")


def plain(method, path, body=b"", headers=None):
    """A request as it is, without a client that tidies it: status, headers, body."""
    connection = http.client.HTTPConnection(ADDRESS, timeout=20)
    connection.request(method, path, body=body, headers=headers or {})
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def health():
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1.0.0")
    assert not client.is_model_ready("nope") and not client.is_model_ready(MODEL, "9.9.9")


def metadata():
    server = client.get_server_metadata()
    assert server["name"] == "farlight", server
    # The protocol's OpenAPI document has a slash at the end.
    assert plain("GET", "/v2/")[0] == 200
    for extension in ["binary_tensor_data", "classification", "model_configuration", "model_repository",
                      "parameters", "schedule_policy", "sequence", "statistics"]:
        assert extension in server["extensions"], server
    for version in ["", "1.0.0"]:
        model = client.get_model_metadata(MODEL, version)
        assert model["name"] == MODEL and model["versions"] == ["1.0.0"], model
        (spec,) = model["inputs"]
        assert spec["datatype"] == "FP32" and spec["shape"] == [-1, 6, 100], spec
        assert [(o["name"], o["datatype"], o["shape"]) for o in model["outputs"]] == [
            ("scores", "FP32", [-1, 7]), ("label", "BYTES", [-1])], model
        config = client.get_model_config(MODEL, version)
        assert config["name"] == MODEL and config["max_batch_size"] > 1, config
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [6, 100]}], config
        assert config["output"][1]["data_type"] == "TYPE_STRING", config
    assert "sequence_batching" in client.get_model_config("counter")
    types = client.get_model_metadata("types")
    assert len(types["inputs"]) == 13 and len(types["outputs"]) == 13, types
    for call in [client.get_model_metadata, client.get_model_config, client.get_inference_statistics]:
        refused(404, "nope", lambda: call("nope"))
        refused(404, "9.9.9", lambda: call(MODEL, "9.9.9"))


def gestures(data, binary, **options):
    tensor = triton.InferInput("x", list(data.shape), "FP32")
    tensor.set_data_from_numpy(data, binary_data=binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("scores", "label")]
    return client.infer(MODEL, [tensor], outputs=outputs, **options)


def text(label):
    return label.decode() if isinstance(label, bytes) else label


def forms(data):
    """JSON and binary tensors, plain and compressed both ways: the same answers."""
    answers = []
    for binary in (True, False):
        for sent in (None, "gzip", "deflate"):
            for back in (None, "gzip", "deflate"):
                result = gestures(data, binary, request_id="a-1", request_compression_algorithm=sent,
                                  response_compression_algorithm=back)
                assert result.get_response()["id"] == "a-1"
                assert result.get_response()["model_version"] == "1.0.0"
                scores = result.as_numpy("scores")
                assert scores.shape == (2, 7) and np.allclose(scores.sum(axis=1), 1, atol=1e-4), scores
                labels = [text(label) for label in result.as_numpy("label")]
                answers.append((scores, labels))
    for scores, labels in answers:
        assert np.allclose(scores, answers[0][0], atol=1e-6) and labels == answers[0][1]
    # Large enough to be worth compressing, and it is.
    many = np.repeat(data, 50, axis=0)
    body, length = triton.InferenceServerClient.generate_request_body(
        [gestures_input(many)], outputs=[triton.InferRequestedOutput("scores")])
    headers = {"Accept-Encoding": "gzip", "Inference-Header-Content-Length": str(length)}
    status, headers, _ = plain("POST", f"/v2/models/{MODEL}/infer", body, headers)
    assert status == 200 and headers["Content-Encoding"] == "gzip", (status, headers)
    return answers[0]


def gestures_input(data):
    tensor = triton.InferInput("x", list(data.shape), "FP32")
    tensor.set_data_from_numpy(data)
    return tensor


def every_type():
    """All element types, several inputs, two items, binary and JSON."""
    values = {name: np.array([[0, 1], [100, 7]], dtype) for name, dtype in {
        "FP32": np.float32, "FP16": np.float16, "FP64": np.float64, "INT8": np.int8, "INT16": np.int16,
        "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32,
        "UINT64": np.uint64}.items()}
    values["BOOL"] = np.array([[True, False], [False, True]])
    values["BYTES"] = np.array([["", "b"], ["längere", "z\n\"'"]], dtype=np.object_)
    for binary in (True, False):
        inputs, outputs = [], []
        for name, value in values.items():
            tensor = triton.InferInput(f"x_{name.lower()}", [2, 2], name)
            # The client has no JSON form of FP16.
            tensor.set_data_from_numpy(value, binary_data=binary or name == "FP16")
            inputs.append(tensor)
            outputs.append(triton.InferRequestedOutput(f"y_{name.lower()}", binary_data=binary or name == "FP16"))
        result = client.infer("types", inputs, outputs=outputs)
        for name, value in values.items():
            back = result.as_numpy(f"y_{name.lower()}")
            assert back.shape == (2, 2), (name, back.shape)
            if name == "BYTES":
                back = np.array([text(element) for element in back.flatten()], dtype=np.object_).reshape(2, 2)
            assert np.array_equal(back, value), (binary, name, back, value)
        assert len(client.infer("types", inputs).get_response()["outputs"]) == 13
    refused(400, "is missing", lambda: client.infer("types", inputs[1:]))
    refused(400, "twice", lambda: client.infer("types", inputs + inputs[:1]))
    broken = triton.InferInput("x_bytes", [1, 2], "BYTES")
    broken.set_data_from_numpy(np.array([[b"\xff\xfe", b""]], dtype=np.object_))
    others = [one for one in inputs if one.name() != "x_bytes"]
    refused(400, "x_bytes", lambda: client.infer("types", others + [broken]))


def asynchronous(data, answer):
    running = []
    for number in range(16):
        output = triton.InferRequestedOutput("scores")
        running.append(client.async_infer(MODEL, [gestures_input(data)], outputs=[output], request_id=str(number)))
    for number, request in enumerate(running):
        result = request.get_result()
        assert result.get_response()["id"] == str(number)
        assert np.allclose(result.as_numpy("scores"), answer[0], atol=1e-6)


def classification(data, answer):
    result = client.infer(MODEL, [gestures_input(data)], outputs=[triton.InferRequestedOutput("scores", class_count=3)])
    top = result.as_numpy("scores")
    assert top.shape == (2, 3), top
    for item, label in zip(top, answer[1]):
        scores = [entry.decode().split(":") for entry in item]
        assert scores[0][2] == label and float(scores[0][0]) >= float(scores[1][0]), scores
    label = triton.InferRequestedOutput("label", class_count=1)
    refused(400, "no numbers", lambda: client.infer(MODEL, [gestures_input(data)], outputs=[label]))


def raw_body(data, answer):
    """A body that is the one input, and the header that says so."""
    status, headers, body = plain("POST", f"/v2/models/{MODEL}/infer", data.tobytes(),
                                  {"Inference-Header-Content-Length": "0"})
    length = int(headers["Inference-Header-Content-Length"])
    document = json.loads(body[:length])
    assert status == 200 and document["outputs"][0]["name"] == "scores", document
    size = document["outputs"][0]["parameters"]["binary_data_size"]
    scores = np.frombuffer(body[length:length + size], np.float32).reshape(2, 7)
    assert np.allclose(scores, answer[0], atol=1e-6)
    for length, wrong in [("0", data.tobytes()[:10]), ("7000", b"{}"), ("two", b"{}"), ("-1", b"{}")]:
        headers = {"Inference-Header-Content-Length": length}
        assert plain("POST", f"/v2/models/{MODEL}/infer", wrong, headers)[0] == 400, length


def statistics():
    def success():
        (one,) = client.get_inference_statistics(MODEL, "1.0.0")["model_stats"]
        assert one["name"] == MODEL and one["version"] == "1.0.0" and one["last_inference"] > 0, one
        times = one["inference_stats"]
        assert times["compute_infer"]["count"] > 0 and times["compute_infer"]["ns"] > 0, one
        return one["inference_count"]

    before = success()
    gestures(np.zeros((3, 6, 100), np.float32), True)
    assert success() == before + 3
    names = [one["name"] for one in client.get_inference_statistics()["model_stats"]]
    assert names == sorted(names) and MODEL in names and "types" in names, names


def repository():
    index = {one["name"]: one for one in client.get_model_repository_index()}
    assert index[MODEL] == {"name": MODEL, "version": "1.0.0", "state": "READY", "reason": ""}, index
    client.unload_model("types")
    assert not client.is_model_ready("types")
    index = {one["name"]: one for one in client.get_model_repository_index()}
    assert index["types"]["state"] == "UNAVAILABLE", index
    ready = json.loads(plain("POST", "/v2/repository/index", b'{"ready":true}')[2])
    assert "types" not in [one["name"] for one in ready], ready
    client.load_model("types")
    assert client.is_model_ready("types")
    # A release is what was signed: no other configuration or files.
    refused(400, "config", lambda: client.load_model("types", config='{"backend":"x"}'))
    refused(400, "", lambda: client.load_model("nope"))
    refused(400, "", lambda: client.unload_model("nope", unload_dependents=True))


def sequences():
    def count(stream, x, start=False, end=False):
        tensor = triton.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.array([x], np.float32))
        result = client.infer("counter", [tensor], sequence_id=stream, sequence_start=start, sequence_end=end)
        return float(result.as_numpy("y")[0])

    assert count(1, 1, start=True) == 1 and count("two", 10, start=True) == 10
    assert count(1, 2) == 3 and count("two", 20) == 30
    assert count(1, 3, end=True) == 6 and count("two", 1) == 31
    assert count(1, 5) == 5, "an ended stream begins anew"
    assert count("two", 7, start=True) == 7 and count(0, 4) == 4
    tensor = gestures_input(np.zeros((1, 6, 100), np.float32))
    refused(400, "sequence_id", lambda: client.infer(MODEL, [tensor], sequence_id=5, sequence_start=True))


def overload():
    """One runs, none waits: the others are turned away at once, and told when to come again."""
    def slow(wait):
        tensor = triton.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.ones([1], np.float32))
        running = [client.async_infer("slow", [tensor], priority=1, timeout=59_000_000) for _ in range(wait)]
        outcomes = []
        for one in running:
            try:
                outcomes.append(float(one.get_result().as_numpy("y")[0, 0]))
            except InferenceServerException as error:
                assert error.status() == "503" and "busy" in error.message(), error
                outcomes.append(503)
        return outcomes

    outcomes = slow(6)
    assert 503 in outcomes and any(abs(one - 1) < 0.01 for one in outcomes), outcomes
    assert slow(1) != [503], "it recovers at once"


def errors(data):
    wrong = triton.InferInput("x", [1, 6, 99], "FP32")
    wrong.set_data_from_numpy(data[:1, :, :99])
    refused(400, "shape", lambda: client.infer(MODEL, [wrong]))
    integers = triton.InferInput("x", [1, 6, 100], "INT32")
    integers.set_data_from_numpy(np.zeros((1, 6, 100), np.int32))
    refused(400, "datatype", lambda: client.infer(MODEL, [integers]))
    named = triton.InferInput("y", [1, 6, 100], "FP32")
    named.set_data_from_numpy(data[:1])
    refused(400, '"y"', lambda: client.infer(MODEL, [named]))
    output = triton.InferRequestedOutput("nope")
    refused(400, "nope", lambda: client.infer(MODEL, [gestures_input(data)], outputs=[output]))
    refused(404, "nope", lambda: client.infer("nope", [gestures_input(data)]))
    refused(404, "9.9.9", lambda: client.infer(MODEL, [gestures_input(data)], model_version="9.9.9"))
    assert client.infer(MODEL, [gestures_input(data)], model_version="1.0.0").as_numpy("scores").shape == (2, 7)
    # Names arrive as they are written; none reaches beyond its place, and each refusal is JSON.
    for path in ["/v2/models/nope/../watch-gestures", "/v2/models/..%2Fwatch-gestures", "/v2/models/%FF", "/v2//models",
                 "/v2/models//ready", "/v2/models/a/b/c", f"/v2/models/{MODEL}/"]:
        status, _, body = plain("GET", path)
        assert status in (400, 404) and json.loads(body)["error"], (path, status, body)
    # So is that of a body which is too large.
    status, _, body = plain("POST", f"/v2/models/{MODEL}/infer", b" " * (17 << 20))
    assert status == 413 and json.loads(body)["error"], (status, body)
    status, headers, body = plain("PUT", "/v2/health/live")
    assert status == 405 and json.loads(body)["error"] and "GET" in headers["Allow"], (status, headers, body)
    status, _, body = plain("POST", f"/v2/models/{MODEL}/infer", b"x", {"Content-Encoding": "br"})
    assert status == 415 and json.loads(body)["error"], (status, body)
    status, _, body = plain("POST", f"/v2/models/{MODEL}/infer", b"x", {"Content-Encoding": "gzip"})
    assert status == 400 and json.loads(body)["error"], (status, body)


def main():
    data = np.random.default_rng(1).normal(size=(2, 6, 100)).astype(np.float32)
    health()
    metadata()
    answer = forms(data)
    every_type()
    asynchronous(data, answer)
    classification(data, answer)
    raw_body(data, answer)
    statistics()
    repository()
    sequences()
    overload()
    errors(data)
    print("tritonclient: health, metadata, configuration, every type, JSON, binary, compression, async, classification, "
          "raw body, statistics, repository, sequences, overload and errors are right")


main()
