"""Runs the models of models.json with ONNX Runtime on seeded random inputs and writes down what it gives.

    reference.py FOLDER [SEED]

For each case a folder FOLDER/cases/NAME with model.onnx, case.json and arrays as little-endian .bin files.
The model is run as its package has it: constants are passed as inputs, shapes are those of the inputs.
"""

import json
import pathlib
import shutil
import statistics
import sys
import time

import numpy
import onnxruntime

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]
# ONNX's element types, by ONNX Runtime's names of tensor types.
ELEMENTS = {
    "tensor(float)": (1, numpy.float32), "tensor(uint8)": (2, numpy.uint8), "tensor(int8)": (3, numpy.int8),
    "tensor(int32)": (6, numpy.int32), "tensor(int64)": (7, numpy.int64), "tensor(bool)": (9, numpy.bool_),
    "tensor(double)": (11, numpy.float64),
}
CODES = {numpy.dtype(dtype): code for code, dtype in ELEMENTS.values()}
# Timed calls end after this many or this long.
TIMED_CALLS, TIMED_SECONDS = 2000, 3.0


def model_path(case, folder):
    if "local" in case:
        return ROOT / case["local"]
    ending = case["file"].replace("/", "__")
    files = [file for file in (folder / "files" / case["package"]).iterdir() if file.name.endswith(ending)]
    exact = [file for file in files if file.name.endswith("__" + ending)]
    return min(exact or files)


def random_input(random, case, info):
    """A seeded input of the case's shape: uniform in its range, -1 to 1 unless the case says otherwise."""
    shape = case["shapes"].get(info.name) or [size if isinstance(size, int) and size > 0 else 1 for size in info.shape]
    if info.name in case.get("state", {}).values():
        return numpy.zeros(shape, ELEMENTS[info.type][1])
    low, high = case.get("ranges", {}).get(info.name, (-1, 1))
    dtype = ELEMENTS[info.type][1]
    values = random.uniform(low, high, shape)
    return numpy.floor(values).astype(dtype) if numpy.issubdtype(dtype, numpy.integer) else values.astype(dtype)


def p50(session, feeds):
    start, times = time.monotonic(), []
    while len(times) < TIMED_CALLS and time.monotonic() - start < TIMED_SECONDS:
        call = time.perf_counter()
        session.run(None, feeds)
        times.append((time.perf_counter() - call) * 1e6)
    return statistics.median(times)


def write_case(case, folder, seed):
    target = folder / "cases" / case["name"]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    path = model_path(case, folder)
    shutil.copy(path, target / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    random = numpy.random.default_rng(seed)

    def store(name, array):
        array = numpy.asarray(array)
        (target / name).write_bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return {"element": CODES[array.dtype], "shape": list(array.shape), "file": name}

    infos = {info.name: info for info in session.get_inputs()}
    fixed = {
        name: numpy.array(value, ELEMENTS[infos[name].type][1]) for name, value in case.get("constants", {}).items()
    }
    state = case.get("state", {})
    inputs = [name for name in infos if name not in fixed]
    outputs = [info.name for info in session.get_outputs()]
    carried, calls, first = {}, [], None
    for number in range(case.get("calls", 3)):
        fresh = {name: random_input(random, case, infos[name]) for name in inputs if name not in carried}
        feeds = {**fixed, **fresh, **carried}
        first = first or feeds
        results = dict(zip(outputs, session.run(None, feeds)))
        carried = {entry: results[result] for result, entry in state.items()}
        calls.append({
            "inputs": {name: store(f"{number}.in.{inputs.index(name)}.bin", value) for name, value in fresh.items()},
            "outputs": {
                name: store(f"{number}.out.{outputs.index(name)}.bin", value) for name, value in results.items()
            },
        })
    (target / "case.json").write_text(json.dumps({
        "name": case["name"],
        "expect": case.get("expect", "runs"),
        "operator": case.get("operator"),
        "shapes": case["shapes"],
        "constants": {name: store(f"constant.{index}.bin", fixed[name]) for index, name in enumerate(fixed)},
        "state": state,
        "inputs": inputs,
        "outputs": outputs,
        "calls": calls,
        "ort_p50_us": p50(session, first),
    }, indent=1))


def main():
    folder = pathlib.Path(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for case in json.loads((HERE / "models.json").read_text())["cases"]:
        write_case(case, folder, seed)
    print(f"ONNX Runtime {onnxruntime.__version__}, one thread, seed {seed}")


main()
