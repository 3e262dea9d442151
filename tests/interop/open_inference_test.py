"""open-inference-openapi, the client generated from the protocol's own description, against a running agent:
FARLIGHT_HTTP is its address."""

import asyncio
import os

from open_inference.openapi.client import AsyncOpenInferenceClient, InferenceRequest, OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.errors import BadRequestError, NotFoundError

MODEL = "watch-gestures"
BASE = "http://" + os.environ["FARLIGHT_HTTP"]


def refused(error, call):
    try:
        call()
    except error as refusal:
        assert refusal.body["error"], refusal
        return refusal.status_code
    raise AssertionError("was accepted")


def request(data, **more):
    tensor = {"name": "x", "shape": [1, 6, 100], "datatype": "FP32", "data": data}
    return InferenceRequest(inputs=[tensor], **more)


def main():
    client = OpenInferenceClient(base_url=BASE, timeout=20)
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness(MODEL)
    client.check_model_version_readiness(MODEL, "1.0.0")
    refused(NotFoundError, lambda: client.check_model_readiness("nope"))
    refused(NotFoundError, lambda: client.check_model_version_readiness(MODEL, "9.9.9"))
    server = client.read_server_metadata()
    assert server.name == "farlight" and "binary_tensor_data" in server.extensions, server
    for model in (client.read_model_metadata(MODEL), client.read_model_version_metadata(MODEL, "1.0.0")):
        assert model.versions == ["1.0.0"] and model.inputs[0].shape == [-1, 6, 100], model
        assert [output.name for output in model.outputs] == ["scores", "label"], model
    assert refused(ApiError, lambda: client.read_model_metadata("nope")) == 404

    nested = [[[0.01 * (c + t) for t in range(100)] for c in range(6)]]
    flat = [value for channel in nested[0] for value in channel]
    answers = [
        client.model_infer(MODEL, request=request(nested, id="a-1")),
        client.model_infer(MODEL, request=request(flat, id="a-1", outputs=[{"name": "scores"}, {"name": "label"}])),
        client.model_version_infer(MODEL, "1.0.0", request=request(flat, id="a-1", parameters={"priority": 1})),
        asyncio.run(AsyncOpenInferenceClient(base_url=BASE).model_infer(MODEL, request=request(flat, id="a-1"))),
    ]
    for answer in answers:
        assert answer.id == "a-1" and answer.model_name == MODEL and answer.model_version == "1.0.0", answer
        scores, label = answer.outputs
        assert scores.name == "scores" and scores.shape == [1, 7] and label.shape == [1], answer
        assert answer.outputs == answers[0].outputs, answers

    text = {"name": "x", "shape": [1, 6, 100], "datatype": "FP32", "data": ["a"] * 600}
    assert refused(BadRequestError, lambda: client.model_infer(MODEL, request=InferenceRequest(inputs=[text]))) == 400
    assert refused(ApiError, lambda: client.model_infer("nope", request=request(flat))) == 404
    assert refused(ApiError, lambda: client.model_version_infer(MODEL, "9.9.9", request=request(flat))) == 404
    print("open-inference-openapi: health, metadata, inference nested, flat, by version and async, and errors are right")


main()
