"""kserve's client for the v2 REST protocol against a running agent: FARLIGHT_HTTP is its address."""

import asyncio
import os

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

MODEL = "watch-gestures"
BASE = "http://" + os.environ["FARLIGHT_HTTP"]


async def health(client):
    # It reads the key `ready` of all three answers.
    assert await client.is_server_live(BASE) is True
    assert await client.is_server_ready(BASE) is True
    assert await client.is_model_ready(BASE, MODEL) is True
    assert await client.is_model_ready(BASE, "nope") is False


async def forms(client):
    """JSON and binary tensors both ways, by default and by output."""
    data = np.random.default_rng(1).normal(size=(2, 6, 100)).astype(np.float32)
    answers = []
    for binary_input in (True, False):
        for binary_output in (None, True, False):
            tensor = InferInput("x", [2, 6, 100], "FP32")
            tensor.set_data_from_numpy(data, binary_data=binary_input)
            outputs = None
            if binary_output is not None:
                parameters = {"binary_data": binary_output}
                outputs = [RequestedOutput(name, parameters) for name in ("scores", "label")]
            request = InferRequest(MODEL, [tensor], request_id="a-1", request_outputs=outputs,
                                   parameters={"priority": 1, "timeout": 900_000})
            headers = {}
            answer = await client.infer(BASE, request, MODEL, response_headers=headers)
            assert answer.id == "a-1" and answer.model_name == MODEL, answer
            binary = "inference-header-content-length" in headers
            assert binary == bool(binary_output), headers
            scores = next(o for o in answer.outputs if o.name == "scores").as_numpy()
            assert scores.shape == (2, 7) and np.allclose(scores.sum(axis=1), 1, atol=1e-4), scores
            label = next(o for o in answer.outputs if o.name == "label")
            answers.append((scores, [l.decode() if isinstance(l, bytes) else str(l) for l in label.data]))
    for scores, labels in answers:
        assert np.allclose(scores, answers[0][0], atol=1e-6) and labels == answers[0][1], answers


async def every_type(client):
    """All element types at once; FP16 is binary alone."""
    dtypes = {"FP32": np.float32, "FP16": np.float16, "FP64": np.float64, "INT8": np.int8, "INT16": np.int16,
              "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32,
              "UINT64": np.uint64, "BOOL": np.bool_, "BYTES": np.object_}
    for binary in (True, False):
        inputs, outputs, values = [], [], {}
        for name, dtype in dtypes.items():
            value = np.array([["a", "bä"]] if name == "BYTES" else [[1, 0]], dtype)
            if name == "BYTES":
                value = np.char.encode(value.astype(str), "utf-8").astype(np.object_)
            values[name] = value
            as_binary = binary or name == "FP16"
            tensor = InferInput(f"x_{name.lower()}", [1, 2], name)
            tensor.set_data_from_numpy(value, binary_data=as_binary)
            inputs.append(tensor)
            outputs.append(RequestedOutput(f"y_{name.lower()}", {"binary_data": as_binary}))
        answer = await client.infer(BASE, InferRequest("types", inputs, request_outputs=outputs), "types")
        for output in answer.outputs:
            name = output.name[2:].upper()
            back = np.array(output.data).flatten().tolist()
            if name == "BYTES":
                back = [text.encode() if isinstance(text, str) else text for text in back]
            assert back == values[name].flatten().tolist(), (binary, name, back)


async def refused(client):
    async def status(name, data):
        try:
            await client.infer(BASE, data, name)
        except httpx.HTTPStatusError as error:
            return error.response.status_code
        raise AssertionError("was accepted")

    tensor = InferInput("x", [1, 6, 99], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 6, 99), np.float32))
    assert await status(MODEL, InferRequest(MODEL, [tensor])) == 400
    assert await status("nope", InferRequest("nope", [tensor])) == 404
    assert await status(MODEL, {"inputs": []}) == 400


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=20))
    await health(client)
    await forms(client)
    await every_type(client)
    await refused(client)
    await client.close()
    print("kserve: health, JSON and binary both ways, every type and errors are right")


asyncio.run(main())
