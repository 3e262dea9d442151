"""Prints the median time in µs that ONNX Runtime takes for a model; arguments: MODEL SHAPE SECONDS."""

import statistics
import sys
import time

import numpy
import onnxruntime

path, shape, seconds = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
dims = [int(size) for size in shape.split(",")]
count = int(numpy.prod(dims))
values = 0.5 + 0.4 * numpy.sin(numpy.arange(count, dtype=numpy.float32) * 0.7)
feed = {session.get_inputs()[0].name: values.reshape(dims).astype(numpy.float32)}
for _ in range(20):
    session.run(None, feed)
times = []
end = time.perf_counter() + float(seconds)
while (started := time.perf_counter()) < end:
    session.run(None, feed)
    times.append(time.perf_counter() - started)
print(statistics.median(times) * 1e6)
