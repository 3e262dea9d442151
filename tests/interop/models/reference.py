"""Runs the models of models.json with ONNX Runtime on seeded random inputs and writes down what it gives.

    reference.py FOLDER [SEED]         for each case a folder FOLDER/cases/NAME with model.onnx, case.json and arrays as
                                       little-endian .bin files
    reference.py FOLDER --simplified   whether ONNX Runtime gives the same for the simplified.onnx that the comparison
                                       left in these folders

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
    if info.name == case.get("picture"):
        return picture(random, shape)
    low, high = case.get("ranges", {}).get(info.name, (-1, 1))
    dtype = ELEMENTS[info.type][1]
    values = random.uniform(low, high, shape)
    return numpy.floor(values).astype(dtype) if numpy.issubdtype(dtype, numpy.integer) else values.astype(dtype)


def picture(random, shape):
    """Dark strokes in rows on a light page, -1 (black) to 1 (white): what a text model has something to say about."""
    batch, channels, height, width = shape
    page = random.uniform(0.8, 1.0, (batch, channels, height, width)).astype(numpy.float32)
    line = min(height, 40)
    for top in range(0, height - line + 1, 2 * line):
        for left in range(8, width - 24, 20):
            for _ in range(3):
                x, y = left + random.integers(0, 12), top + random.integers(4, line - 12)
                across, down = (14, 3) if random.random() < 0.5 else (3, 14)
                page[:, :, y:min(y + down, top + line - 4), x:x + across] = -1
    return page


def p50(session, feeds):
    start, times = time.monotonic(), []
    while len(times) < TIMED_CALLS and time.monotonic() - start < TIMED_SECONDS:
        call = time.perf_counter()
        session.run(None, feeds)
        times.append((time.perf_counter() - call) * 1e6)
    return statistics.median(times)


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def write_case(case, folder, seed):
    target = folder / "cases" / case["name"]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    path = model_path(case, folder)
    shutil.copy(path, target / "model.onnx")
    session = open_session(path)
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
    refused = case.get("expect") == "refused"
    for number in range(1 if refused else case.get("calls", 3)):
        fresh = {name: random_input(random, case, infos[name]) for name in inputs if name not in carried}
        feeds = {**fixed, **fresh, **carried}
        first = first or feeds
        if refused:
            break
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


def check_simplified(folder):
    """Compares ONNX Runtime's outputs for the simplified model with those for the original; False when there is nothing to compare."""
    case = json.loads((folder / "case.json").read_text())
    if not case["calls"]:
        return False
    session = open_session(folder / "simplified.onnx")

    def load(stored):
        dtype = next(dtype for code, dtype in ELEMENTS.values() if code == stored["element"])
        return numpy.frombuffer((folder / stored["file"]).read_bytes(), dtype).reshape(stored["shape"])

    carried = {}
    for call in case["calls"]:
        feeds = {name: load(stored) for name, stored in call["inputs"].items()} | carried
        results = dict(zip(case["outputs"], session.run(case["outputs"], feeds)))
        carried = {entry: results[result] for result, entry in case["state"].items()}
        for name, stored in call["outputs"].items():
            numpy.testing.assert_allclose(results[name], load(stored), rtol=1e-3, atol=1e-5, err_msg=case["name"])
    return True


def main():
    folder = pathlib.Path(sys.argv[1])
    if sys.argv[2:] == ["--simplified"]:
        checked = sum(check_simplified(file.parent) for file in sorted((folder / "cases").glob("*/simplified.onnx")))
        print(f"ONNX Runtime gives the same for {checked} simplified models")
        return
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for case in json.loads((HERE / "models.json").read_text())["cases"]:
        write_case(case, folder, seed)
    print(f"ONNX Runtime {onnxruntime.__version__}, one thread, seed {seed}")


main()
