#!/usr/bin/env python3
"""Sends the same inputs to two agents, in JSON and in binary by turns, and compares what they answer, number by number.

    parity.py --models FOLDER --native ADDRESS --foreign ADDRESS --version V    watch-gestures in this version
    parity.py --models FOLDER --change FILE    writes watch-gestures with one weight changed, for an update

Inputs are those of the reference models' own data. Exit code 1 when a number differs by more than 1e-4, or
another release answered.
"""

import argparse
import ast
import json
import struct
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

TOLERANCE = 1e-4
# Of each model, spread over its data.
INPUTS = 24
# Length of the JSON before the tensors.
LENGTH = "Inference-Header-Content-Length"
# The whole of one request under emulation.
SECONDS = 120


def numpy(path):
    """Shape and numbers of a .npy file, row-major."""
    data = path.read_bytes()
    length = struct.unpack("<H", data[8:10])[0]
    header = ast.literal_eval(data[10 : 10 + length].decode("latin1"))
    kind = {"|u1": "B", "<i2": "h"}[header["descr"]]
    body = data[10 + length :]
    return header["shape"], struct.unpack(f"<{len(body) // struct.calcsize(kind)}{kind}", body)


def digits(models):
    (count, *_), pixels = numpy(models / "digits/data/images.npy")
    for at in range(0, count, count // INPUTS):
        yield [1, 1, 8, 8], [float(value) for value in pixels[at * 64 : at * 64 + 64]]


def watch_gestures(models):
    folder = models / "watch-gestures/data"
    index = json.loads((folder / "index.json").read_text())
    (_, channels), samples = numpy(folder / "recordings.npy")
    recordings = index["recordings"]
    for recording in recordings[:: max(1, len(recordings) // INPUTS)]:
        start = recording["start"]
        yield [1, channels, 100], [
            samples[(start + t) * channels + c] / index["counts_per_unit"][c]
            for c in range(channels)
            for t in range(100)
        ]


def in_json(shape, data):
    """Body and headers of a request in JSON, answered in JSON."""
    request = {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}]}
    return json.dumps(request).encode(), {"Content-Type": "application/json"}


def in_binary(shape, data):
    """The same with the tensors as bytes behind the JSON, both ways (the protocol's extension for binary tensors)."""
    body = struct.pack(f"<{len(data)}f", *data)
    tensor = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": len(body)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + body, {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}


def outputs_of(response, binary):
    """Tensors of an answer by their names, and the version that answered. One that was asked for in binary must be."""
    body = response.read()
    head = response.headers.get(LENGTH)
    if (head is not None) != binary:
        sys.exit(f"{response.url}: asked for in {'binary' if binary else 'JSON'}, answered otherwise")
    head = int(head or len(body))
    answer = json.loads(body[:head])
    at = head
    outputs = {}
    for output in answer["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            outputs[output["name"]] = output["data"]
            continue
        tensor, at = body[at : at + size], at + size
        outputs[output["name"]] = ELEMENTS[output["datatype"]](tensor)
    return outputs, answer["model_version"]


def texts(tensor):
    found, at = [], 0
    while at < len(tensor):
        (length,) = struct.unpack_from("<I", tensor, at)
        found.append(tensor[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return found


ELEMENTS = {
    "FP32": lambda tensor: list(struct.unpack(f"<{len(tensor) // 4}f", tensor)),
    "BYTES": texts,
}


def ask(address, model, request):
    """Scores, the other outputs and the version; a busy agent is asked again."""
    until = time.monotonic() + SECONDS
    body, headers = request
    while True:
        call = urllib.request.Request(f"http://{address}/v2/models/{model}/infer", body, headers)
        try:
            with urllib.request.urlopen(call, timeout=SECONDS) as response:
                outputs, version = outputs_of(response, LENGTH in headers)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > until:
                sys.exit(f"{model} at {address}: {error.code} {error.read().decode()}")
            continue
        return outputs.pop("scores"), outputs, version


def compare(models, native, foreign, version):
    worst = 0.0
    numbers = 0
    inputs = 0
    for model, source, expected in (("digits", digits, "1.0.0"), ("watch-gestures", watch_gestures, version)):
        for at, (shape, data) in enumerate(source(models)):
            request = (in_json, in_binary)[at % 2](shape, data)
            ours, said, release = ask(native, model, request)
            theirs, also, other = ask(foreign, model, request)
            if not expected == release == other:
                sys.exit(f"{model}: {release} and {other} answered, not {expected}")
            if said != also or len(ours) != len(theirs):
                sys.exit(f"{model}: {said} and {also} of input {inputs}")
            inputs += 1
            numbers += len(ours)
            for a, b in zip(ours, theirs):
                difference = abs(a - b)
                worst = max(worst, difference)
                # Scores are at most 1, so that the absolute difference is the stricter one.
                if not difference <= TOLERANCE:
                    sys.exit(f"{model}: {a} and {b} of input {inputs}")
    print(f"{inputs} inputs, {numbers} numbers, largest difference {worst:.1e} of at most {TOLERANCE:.0e}")


def change(models, out):
    """The last bit but eight of one weight: a new file, and still the model that it was."""
    data = bytearray((models / "watch-gestures/model.onnx").read_bytes())
    # The longest run of bytes with a length before it is the largest tensor (raw_data of TensorProto, field 9).
    best = (0, 0)
    for at, tag in enumerate(data):
        if tag != 0x4A:
            continue
        length = shift = 0
        body = at + 1
        while body < len(data):
            length |= (data[body] & 0x7F) << shift
            shift += 7
            body += 1
            if data[body - 1] < 0x80 or shift > 28:
                break
        if length % 4 == 0 and body + length <= len(data) and length > best[0]:
            best = (length, body)
    length, body = best
    assert length > 1024, "no tensor found"
    data[body + length // 2 // 4 * 4 + 1] ^= 1
    out.write_bytes(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--native")
    parser.add_argument("--foreign")
    parser.add_argument("--version")
    parser.add_argument("--change", type=Path)
    arguments = parser.parse_args()
    if arguments.change:
        change(arguments.models, arguments.change)
    else:
        compare(arguments.models, arguments.native, arguments.foreign, arguments.version)


main()
