"""tritonclient[http] against a running agent: FARLIGHT_HTTP is its address."""

import os

import numpy as np
import tritonclient.http as http

MODEL = "watch-gestures"
client = http.InferenceServerClient(os.environ["FARLIGHT_HTTP"])

assert client.is_server_live()
assert client.is_server_ready()
assert client.is_model_ready(MODEL)
assert client.is_model_ready(MODEL, "1.0.0")
assert not client.is_model_ready("nope")
assert client.get_server_metadata()["name"] == "farlight"

metadata = client.get_model_metadata(MODEL)
assert metadata["name"] == MODEL and metadata["versions"] == ["1.0.0"], metadata
(spec,) = metadata["inputs"]
assert spec["datatype"] == "FP32" and spec["shape"] == [-1, 6, 100], spec
index = client.get_model_repository_index()
assert index[0]["name"] == MODEL and index[0]["state"] == "READY", index

rng = np.random.default_rng(1)
data = rng.normal(size=(2, 6, 100)).astype(np.float32)
answers = []
for binary in (True, False):
    for compression in (None, "gzip", "deflate"):
        tensor = http.InferInput(spec["name"], [2, 6, 100], "FP32")
        tensor.set_data_from_numpy(data, binary_data=binary)
        outputs = [http.InferRequestedOutput(o["name"], binary_data=binary) for o in metadata["outputs"]]
        result = client.infer(MODEL, [tensor], outputs=outputs, request_id="a-1",
                              request_compression_algorithm=compression)
        assert result.get_response()["id"] == "a-1"
        scores = result.as_numpy("scores")
        assert scores.shape == (2, 7) and np.allclose(scores.sum(axis=1), 1, atol=1e-4), scores
        labels = result.as_numpy("label")
        assert labels.shape == (2,)
        answers.append((scores, [l.decode() if isinstance(l, bytes) else l for l in labels]))
for scores, labels in answers:
    assert np.allclose(scores, answers[0][0], atol=1e-6) and labels == answers[0][1]

tensor = http.InferInput(spec["name"], [1, 6, 100], "FP32")
tensor.set_data_from_numpy(data[:1])
result = client.infer(MODEL, [tensor], outputs=[http.InferRequestedOutput("scores", class_count=3)])
top = [entry.decode().split(":") for entry in result.as_numpy("scores").flatten()]
assert len(top) == 3 and top[0][2] == answers[0][1][0], top

bad = http.InferInput(spec["name"], [1, 6, 99], "FP32")
bad.set_data_from_numpy(data[:1, :, :99])
try:
    client.infer(MODEL, [bad])
    raise SystemExit("a wrong shape was accepted")
except http.InferenceServerException if hasattr(http, "InferenceServerException") else Exception as error:
    assert "shape" in str(error), error

print("tritonclient: metadata, JSON, binary, gzip, deflate, classification and errors are right")
