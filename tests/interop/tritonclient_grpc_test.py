"""tritonclient[grpc] against a running agent: FARLIGHT_GRPC is its address. The device serves watch-gestures, types,
counter and slow (see tests/support/src/bin/stage.rs)."""

import os
import queue

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

MODEL = "watch-gestures"
client = triton.InferenceServerClient(os.environ["FARLIGHT_GRPC"])


def refused(code, part, call):
    """The call ends with this status code and a message that has `part` in it."""
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{code}", (error.status(), error.message())
        assert part in error.message(), error.message()
        return
    raise AssertionError(f"was accepted, {code} is due: {part}")


def tensor(name, data, datatype):
    sent = triton.InferInput(name, list(data.shape), datatype)
    sent.set_data_from_numpy(data)
    return sent


def health():
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1.0.0")
    assert not client.is_model_ready("nope") and not client.is_model_ready(MODEL, "9.9.9")


def metadata():
    server = client.get_server_metadata()
    assert server.name == "farlight" and "statistics" in server.extensions, server
    for version in ["", "1.0.0"]:
        model = client.get_model_metadata(MODEL, version)
        assert model.name == MODEL and list(model.versions) == ["1.0.0"], model
        (spec,) = model.inputs
        assert spec.datatype == "FP32" and list(spec.shape) == [-1, 6, 100], spec
        assert [(o.name, o.datatype, list(o.shape)) for o in model.outputs] == [
            ("scores", "FP32", [-1, 7]), ("label", "BYTES", [-1])], model
        config = client.get_model_config(MODEL, version, as_json=True)["config"]
        assert config["name"] == MODEL and config["max_batch_size"] > 1, config
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["6", "100"]}], config
        assert config["output"][1]["data_type"] == "TYPE_STRING", config
        assert config["instance_group"][0]["kind"] == "KIND_CPU" and config["backend"], config
    assert client.get_model_config("counter").config.HasField("sequence_batching")
    for call in [client.get_model_metadata, client.get_model_config, client.get_inference_statistics]:
        refused("NOT_FOUND", "nope", lambda: call("nope"))
        refused("NOT_FOUND", "9.9.9", lambda: call(MODEL, "9.9.9"))


def forms(data):
    """Plain and compressed, all outputs and those asked for, now and later."""
    sent = [tensor("x", data, "FP32")]
    first = client.infer(MODEL, sent, request_id="a-1")
    response = first.get_response()
    assert (response.id, response.model_name, response.model_version) == ("a-1", MODEL, "1.0.0"), response
    scores, labels = first.as_numpy("scores"), first.as_numpy("label")
    assert scores.shape == (2, 7) and np.allclose(scores.sum(axis=1), 1, atol=1e-4) and labels.shape == (2,)
    zipped = client.infer(MODEL, sent, model_version="1.0.0", compression_algorithm="gzip",
                          outputs=[triton.InferRequestedOutput("scores")], priority=1, timeout=900_000)
    assert np.array_equal(zipped.as_numpy("scores"), scores) and zipped.as_numpy("label") is None
    top = client.infer(MODEL, sent, outputs=[triton.InferRequestedOutput("scores", class_count=3)]).as_numpy("scores")
    assert top.shape == (2, 3), top
    for item, label in zip(top, labels):
        assert item[0].decode().split(":")[2] == label.decode(), (item, label)
    answers = queue.Queue()
    for number in range(16):
        client.async_infer(MODEL, sent, lambda result, error: answers.put((result, error)), request_id=str(number))
    ids = set()
    for _ in range(16):
        result, error = answers.get(timeout=20)
        assert error is None and np.array_equal(result.as_numpy("scores"), scores), error
        ids.add(result.get_response().id)
    assert ids == {str(number) for number in range(16)}, ids


def every_type():
    values = {name: np.array([[0, 1], [100, 7]], dtype) for name, dtype in {
        "FP32": np.float32, "FP16": np.float16, "FP64": np.float64, "INT8": np.int8, "INT16": np.int16,
        "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32,
        "UINT64": np.uint64}.items()}
    values["BOOL"] = np.array([[True, False], [False, True]])
    values["BYTES"] = np.array([["", "b"], ["längere", "z\n\"'"]], dtype=np.object_)
    inputs = [tensor(f"x_{name.lower()}", value, name) for name, value in values.items()]
    result = client.infer("types", inputs)
    for name, value in values.items():
        back = result.as_numpy(f"y_{name.lower()}")
        if name == "BYTES":
            back = np.array([text.decode() for text in back.flatten()], dtype=np.object_).reshape(2, 2)
        assert back.shape == (2, 2) and np.array_equal(back, value), (name, back, value)
    refused("INVALID_ARGUMENT", "is missing", lambda: client.infer("types", inputs[1:]))
    refused("INVALID_ARGUMENT", "twice", lambda: client.infer("types", inputs + inputs[:1]))


def statistics(data):
    def count():
        (one,) = client.get_inference_statistics(MODEL, "1.0.0").model_stats
        assert one.last_inference > 0 and one.inference_stats.compute_infer.ns > 0, one
        return one.inference_count

    before = count()
    client.infer(MODEL, [tensor("x", data, "FP32")])
    assert count() == before + 2
    names = [one.name for one in client.get_inference_statistics().model_stats]
    assert names == sorted(names) and MODEL in names and "types" in names, names


def repository():
    def index():
        return {one.name: one.state for one in client.get_model_repository_index().models}

    assert index()[MODEL] == "READY"
    client.unload_model("types")
    assert not client.is_model_ready("types") and index()["types"] == "UNAVAILABLE"
    client.load_model("types")
    assert client.is_model_ready("types")
    refused("INVALID_ARGUMENT", "config", lambda: client.load_model("types", config='{"backend":"x"}'))
    refused("INVALID_ARGUMENT", "", lambda: client.load_model("nope"))


def sequences():
    """By single requests and by a stream of requests, in which one that is wrong ends itself alone."""
    def count(stream, x, start=False, end=False):
        result = client.infer("counter", [tensor("x", np.array([x], np.float32), "FP32")], sequence_id=stream,
                              sequence_start=start, sequence_end=end)
        return float(result.as_numpy("y")[0])

    assert count(1, 1, start=True) == 1 and count("two", 10, start=True) == 10
    assert count(1, 2) == 3 and count("two", 20) == 30 and count(1, 3, end=True) == 6 and count(1, 5) == 5

    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number, x in enumerate([1, 2, 3]):
        client.async_stream_infer("counter", [tensor("x", np.array([x], np.float32), "FP32")], sequence_id="three",
                                  sequence_start=number == 0, request_id=str(number))
    client.async_stream_infer("nope", [tensor("x", np.array([1], np.float32), "FP32")])
    for number, total in enumerate([1, 3, 6]):
        result, error = answers.get(timeout=20)
        assert error is None and float(result.as_numpy("y")[0]) == total, (error, total)
        assert result.get_response().id == str(number)
    result, error = answers.get(timeout=20)
    assert error is not None and "nope" in error.message(), error
    client.stop_stream()


def overload():
    answers = queue.Queue()
    slow = [tensor("x", np.ones([1], np.float32), "FP32")]
    for _ in range(6):
        client.async_infer("slow", slow, lambda result, error: answers.put((result, error)))
    outcomes = [answers.get(timeout=60) for _ in range(6)]
    errors = [error for _, error in outcomes if error is not None]
    assert errors and len(errors) < 6, outcomes
    for error in errors:
        assert error.status() == "StatusCode.UNAVAILABLE" and "busy" in error.message(), error
    client.infer("slow", slow)


def errors(data):
    refused("INVALID_ARGUMENT", "shape", lambda: client.infer(MODEL, [tensor("x", data[:, :, :99], "FP32")]))
    integers = np.zeros((1, 6, 100), np.int32)
    refused("INVALID_ARGUMENT", "datatype", lambda: client.infer(MODEL, [tensor("x", integers, "INT32")]))
    refused("INVALID_ARGUMENT", '"y"', lambda: client.infer(MODEL, [tensor("y", data, "FP32")]))
    output = triton.InferRequestedOutput("nope")
    good = [tensor("x", data, "FP32")]
    refused("INVALID_ARGUMENT", "nope", lambda: client.infer(MODEL, good, outputs=[output]))
    refused("NOT_FOUND", "nope", lambda: client.infer("nope", good))
    refused("NOT_FOUND", "9.9.9", lambda: client.infer(MODEL, good, model_version="9.9.9"))
    refused("INVALID_ARGUMENT", "sequence_id", lambda: client.infer(MODEL, [tensor("x", data[:1], "FP32")],
                                                                    sequence_id=5, sequence_start=True))
    refused("UNIMPLEMENTED", "not served", client.get_trace_settings)
    refused("UNIMPLEMENTED", "not served", client.get_system_shared_memory_status)
    shared = triton.InferInput("x", [1, 6, 100], "FP32")
    shared.set_shared_memory("region", 2400)
    refused("INVALID_ARGUMENT", "shared memory", lambda: client.infer(MODEL, [shared]))


def main():
    data = np.random.default_rng(1).normal(size=(2, 6, 100)).astype(np.float32)
    health()
    metadata()
    forms(data)
    every_type()
    statistics(data)
    repository()
    sequences()
    overload()
    errors(data)
    print("tritonclient over gRPC: health, metadata, configuration, every type, compression, async, classification, "
          "statistics, repository, sequences, streams, overload and errors are right")


main()
