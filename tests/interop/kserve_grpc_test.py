"""kserve's client for the v2 protocol over gRPC against a running agent: FARLIGHT_GRPC is its address."""

import asyncio
import logging
import os

import grpc
import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient
from kserve.protocol.infer_type import RequestedOutput

MODEL = "watch-gestures"
# It logs each refusal with a traceback; those here are meant.
logging.getLogger("kserve").setLevel(logging.CRITICAL)


async def health(client):
    assert await client.is_server_live() is True
    assert await client.is_server_ready() is True
    assert await client.is_model_ready(MODEL) is True
    assert await client.is_model_ready("nope") is False


async def forms(client):
    """Raw contents and those in the field of their type; the answer comes in the same form."""
    data = np.random.default_rng(1).normal(size=(2, 6, 100)).astype(np.float32)
    answers = []
    for binary in (True, False):
        for outputs in (None, [RequestedOutput(name) for name in ("scores", "label")]):
            tensor = InferInput("x", [2, 6, 100], "FP32")
            tensor.set_data_from_numpy(data, binary_data=binary)
            request = InferRequest(MODEL, [tensor], request_id="a-1", request_outputs=outputs,
                                   parameters={"priority": 1, "timeout": 900_000})
            answer = await client.infer(request)
            assert answer.id == "a-1" and answer.model_name == MODEL and answer.model_version == "1.0.0", answer
            scores = next(o for o in answer.outputs if o.name == "scores").as_numpy()
            assert scores.shape == (2, 7) and np.allclose(scores.sum(axis=1), 1, atol=1e-4), scores
            label = next(o for o in answer.outputs if o.name == "label").as_numpy()
            answers.append((scores, [l.decode() if isinstance(l, bytes) else str(l) for l in label]))
    for scores, labels in answers:
        assert np.allclose(scores, answers[0][0], atol=1e-6) and labels == answers[0][1], answers


async def every_type(client):
    """All element types at once. They are sent raw, as FP16 has no field of its own."""
    dtypes = {"FP32": np.float32, "FP16": np.float16, "FP64": np.float64, "INT8": np.int8, "INT16": np.int16,
              "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32,
              "UINT64": np.uint64, "BOOL": np.bool_, "BYTES": np.object_}
    inputs, values = [], {}
    for name, dtype in dtypes.items():
        value = np.array([["a", "bä"]] if name == "BYTES" else [[1, 0]], dtype)
        if name == "BYTES":
            value = np.char.encode(value.astype(str), "utf-8").astype(np.object_)
        values[name] = value
        tensor = InferInput(f"x_{name.lower()}", [1, 2], name)
        tensor.set_data_from_numpy(value, binary_data=True)
        inputs.append(tensor)
    answer = await client.infer(InferRequest("types", inputs))
    assert len(answer.outputs) == 13, answer
    for output in answer.outputs:
        name = output.name[2:].upper()
        back = output.as_numpy().flatten().tolist()
        if name == "BYTES":
            back = [text.encode() if isinstance(text, str) else text for text in back]
        assert back == values[name].flatten().tolist(), (name, back)


async def refused(client):
    async def code(name, shape):
        tensor = InferInput("x", list(shape), "FP32")
        tensor.set_data_from_numpy(np.zeros(shape, np.float32), binary_data=True)
        try:
            await client.infer(InferRequest(name, [tensor]))
        except grpc.RpcError as error:
            return error.code()
        raise AssertionError("was accepted")

    assert await code(MODEL, (1, 6, 99)) == grpc.StatusCode.INVALID_ARGUMENT
    assert await code("nope", (1, 6, 100)) == grpc.StatusCode.NOT_FOUND


async def main():
    async with InferenceGRPCClient(os.environ["FARLIGHT_GRPC"], retries=0, timeout=20) as client:
        await health(client)
        await forms(client)
        await every_type(client)
        await refused(client)
    print("kserve over gRPC: health, raw and typed contents, every type and errors are right")


asyncio.run(main())
