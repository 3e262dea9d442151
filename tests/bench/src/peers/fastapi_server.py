"""The usual small server: FastAPI and ONNX Runtime. Speaks enough of the Open Inference Protocol for the benchmark:
one f32 input, JSON or binary. Arguments: MODEL PORT."""

import json
import sys

import numpy
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response

path, port = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
app = FastAPI()


@app.post("/v2/models/{model}/infer")
async def infer(model: str, request: Request):
    body = await request.body()
    header = request.headers.get("inference-header-content-length")
    if header is None:
        tensor = json.loads(body)["inputs"][0]
        values = numpy.array(tensor["data"], dtype=numpy.float32).reshape(tensor["shape"])
    else:
        tensor = json.loads(body[: int(header)])["inputs"][0]
        values = numpy.frombuffer(body[int(header) :], dtype=numpy.float32).reshape(tensor["shape"])
    output = session.run(None, {name: values})[0]
    described = {"name": "scores", "shape": list(output.shape), "datatype": "FP32"}
    if header is None:
        described["data"] = output.ravel().tolist()
        return {"model_name": model, "outputs": [described]}
    data = output.tobytes()
    described["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"model_name": model, "outputs": [described]}).encode()
    return Response(head + data, headers={"Inference-Header-Content-Length": str(len(head))})


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
