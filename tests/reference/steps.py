"""Makes the known values that the steps of the pipeline are tested against.

Inputs are drawn once from a fixed seed; the expected outputs come from numpy, SciPy, librosa, OpenCV and
Pillow, never from our own code. Run by hand when a case is added, in an environment with requirements.txt:

    python tests/reference/steps.py > crates/inference/src/steps/tests/reference.json
"""

import json
import sys

import cv2
import librosa
import numpy as np
import scipy.signal
import scipy.special
from PIL import Image

random = np.random.default_rng(7)
inputs = {}
cases = []
answers = []


def array(values):
    """An array as JSON, with seven digits: what a 32-bit float holds."""
    values = np.asarray(values, dtype=np.float32)
    flat = [float(f"{v:.7g}") for v in values.ravel()]
    return {"shape": list(values.shape), "values": flat}


def given(name, values):
    """An input of several cases, as a 32-bit float reads it back."""
    inputs[name] = array(values)
    return np.asarray(inputs[name]["values"], dtype=np.float32).reshape(values.shape)


def case(name, source, steps, expected):
    cases.append({"name": name, "input": source, "steps": steps, "expected": array(expected)})


def answer(name, outputs, steps, expected):
    """A case of postprocessing; outputs and expected are arrays by name."""
    made = {name: array(values) for name, values in expected.items()}
    answers.append({"name": name, "outputs": outputs, "steps": steps, "expected": made})


def pillow(image, size, filter):
    return np.asarray(Image.fromarray(image, mode="F").resize((size[1], size[0]), filter))


def opencv(image, size, filter):
    return cv2.resize(image, (size[1], size[0]), interpolation=filter)


def images():
    image = given("image", random.random((9, 13)))
    colour = given("colour", random.random((6, 8, 3)))
    filters = [
        ("nearest", lambda size: pillow(image, size, Image.Resampling.NEAREST)),
        ("bilinear", lambda size: opencv(image, size, cv2.INTER_LINEAR)),
        ("bicubic", lambda size: opencv(image, size, cv2.INTER_CUBIC)),
        ("bilinear_antialias", lambda size: pillow(image, size, Image.Resampling.BILINEAR)),
        ("bicubic_antialias", lambda size: pillow(image, size, Image.Resampling.BICUBIC)),
        ("lanczos", lambda size: pillow(image, size, Image.Resampling.LANCZOS)),
    ]
    for size in [(4, 5), (20, 17), (9, 6), (1, 1)]:
        for name, resize in filters:
            step = {"step": "resize", "axes": [0, 1], "size": list(size), "filter": name}
            case(f"{name} to {size}", "image", [step], resize(size))
    for size in [(4, 5), (3, 13), (1, 1)]:
        step = {"step": "resize", "axes": [0, 1], "size": list(size), "filter": "area"}
        case(f"area to {size}", "image", [step], opencv(image, size, cv2.INTER_AREA))
    small = opencv(colour, (5, 4), cv2.INTER_LINEAR)
    chain = [
        {"step": "resize", "axes": [0, 1], "size": [5, 4]},
        {"step": "normalise", "axis": 2, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        {"step": "transpose", "axes": [2, 0, 1]},
    ]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    case("colour image to planes", "colour", chain, ((small - mean) / std).transpose(2, 0, 1))
    # 6 × 8 into 10 × 10: 7.5 rows round to 8, one row above and one below.
    inside = opencv(colour, (8, 10), cv2.INTER_LINEAR)
    boxed = cv2.copyMakeBorder(inside, 1, 1, 0, 0, cv2.BORDER_CONSTANT, value=(0.5, 0.5, 0.5))
    step = {"step": "letterbox", "axes": [0, 1], "size": [10, 10], "value": 0.5}
    case("letterbox", "colour", [step], boxed)
    for border, mode in [("constant", "constant"), ("edge", "edge"), ("reflect", "reflect")]:
        step = {"step": "pad", "axes": [0, 1], "before": [2, 0], "after": [1, 5], "border": border}
        case(f"pad {border}", "image", [step], np.pad(image, ((2, 1), (0, 5)), mode=mode))
    case("crop centre", "image", [{"step": "crop", "axes": [0, 1], "size": [4, 6]}], image[2:6, 3:9])
    step = {"step": "crop", "axes": [1], "size": [2], "offset": [11]}
    case("crop offset", "image", [step], image[:, 11:13])
    case("transpose", "colour", [{"step": "transpose", "axes": [1, 2, 0]}], colour.transpose(1, 2, 0))


def signals():
    signal = given("signal", random.standard_normal((2, 40)))
    table = given("table", random.standard_normal((10, 3)) + np.arange(10)[:, None])
    frames = np.lib.stride_tricks.sliding_window_view(signal, 16, axis=1)[:, ::6]
    case("frame", "signal", [{"step": "frame", "axis": 1, "length": 16, "stride": 6}], frames)
    frames = np.lib.stride_tricks.sliding_window_view(table, 4, axis=0)[::3].transpose(0, 2, 1)
    case("frame axis 0", "table", [{"step": "frame", "axis": 0, "length": 4, "stride": 3}], frames)
    for taper in ["hann", "hamming", "blackman"]:
        window = scipy.signal.get_window(taper, 40)
        case(taper, "signal", [{"step": "window", "axis": 1, "taper": taper}], signal * window)
    window = scipy.signal.get_window("hann", 10, fftbins=False)
    step = {"step": "window", "axis": 0, "symmetric": True}
    case("hann symmetric axis 0", "table", [step], table * window[:, None])
    for kind in ["constant", "linear"]:
        step = {"step": "detrend", "axis": 0, "kind": kind}
        case(f"detrend {kind}", "table", [step], scipy.signal.detrend(table, axis=0, type=kind))
    for axis, source, name in [(1, signal, "signal"), (0, table, "table")]:
        spectrum = np.abs(np.fft.rfft(source.astype(np.float64), axis=axis))
        case(f"fft magnitude axis {axis}", name, [{"step": "fft", "axis": axis}], spectrum)
        step = {"step": "fft", "axis": axis, "output": "power"}
        case(f"fft power axis {axis}", name, [step], spectrum**2)
    odd = given("odd", random.standard_normal(15))
    case("fft odd", "odd", [{"step": "fft", "axis": 0}], np.abs(np.fft.rfft(odd.astype(np.float64))))


def spectrograms():
    time = np.arange(600) / 8000
    chirp = np.sin(2 * np.pi * (300 + 8000 * time) * time) + 0.05 * random.standard_normal(600)
    chirp = given("chirp", chirp)
    exact = chirp.astype(np.float64)
    stft = dict(n_fft=64, hop_length=40, win_length=50)
    base = {"step": "stft", "n_fft": 64, "hop": 40, "window": 50}
    for centre, options in [
        ("zeros", dict(center=True, pad_mode="constant")),
        ("reflect", dict(center=True, pad_mode="reflect")),
        ("none", dict(center=False)),
    ]:
        spectrum = np.abs(librosa.stft(exact, **stft, **options))
        case(f"stft {centre}", "chirp", [base | {"centre": centre}], spectrum)
    spectrum = np.abs(librosa.stft(exact, n_fft=63, hop_length=50, window="hamming")) ** 2
    step = {"step": "stft", "n_fft": 63, "hop": 50, "taper": "hamming", "output": "power"}
    case("stft odd power", "chirp", [step], spectrum)

    mel = {"step": "log_mel", "sample_rate": 8000, "n_fft": 256, "hop": 80, "n_mels": 12}
    sizes = dict(sr=8000, n_fft=256, hop_length=80, n_mels=12)
    power = librosa.feature.melspectrogram(y=exact, **sizes)
    case("log mel slaney", "chirp", [mel], librosa.power_to_db(power, top_db=None))
    case("log mel top", "chirp", [mel | {"top": 20.0}], librosa.power_to_db(power, top_db=20))
    reference = librosa.power_to_db(power, ref=2.5, amin=1e-5, top_db=None)
    case("log mel reference", "chirp", [mel | {"reference": 2.5, "floor": 1e-5}], reference)
    band = dict(fmin=100, fmax=3000, htk=True, norm=None, power=1, center=False)
    magnitude = librosa.feature.melspectrogram(y=exact, **sizes, **band)
    step = {"f_min": 100.0, "f_max": 3000.0, "scale": "htk", "norm": "none", "spectrum": "magnitude"}
    step |= {"centre": "none", "log": "ln", "offset": 1e-3}
    case("log mel htk", "chirp", [mel | step], np.log(magnitude + 1e-3))
    step = {"centre": "reflect", "log": "log10"}
    mirrored = librosa.feature.melspectrogram(y=exact, **sizes, pad_mode="reflect")
    case("log mel log10", "chirp", [mel | step], np.log10(np.maximum(mirrored, 1e-10)))


def elements():
    mixed = given("mixed", np.array([[-3.5, -0.5, 0.5], [1.5, 2.5, 254.5], [255.5, 300.0, 7.2]]))
    saturated = np.clip(np.rint(mixed), 0, 255)
    case("cast", "mixed", [{"step": "cast", "datatype": "UINT8"}], saturated)
    for name, kind in [("INT8", np.int8), ("UINT16", np.uint16), ("INT32", np.int32)]:
        ends = np.iinfo(kind)
        step = {"step": "cast", "datatype": name}
        case(f"cast {name}", "mixed", [step], np.clip(np.rint(mixed), ends.min, ends.max))
    third = given("third", np.array([1 / 3, 0.0, -0.0, 2049.0, 65504.0]))
    case("cast FP16", "third", [{"step": "cast", "datatype": "FP16"}], third.astype(np.float16))
    case("cast BOOL", "third", [{"step": "cast", "datatype": "BOOL"}], third.astype(bool))
    case("clip", "mixed", [{"step": "clip", "min": -1.0, "max": 2.0}], np.clip(mixed, -1, 2))
    case("scale", "mixed", [{"step": "scale", "factor": 2.0, "offset": -1.0}], mixed * 2 - 1)
    chain = [
        {"step": "cast", "datatype": "UINT8"},
        {"step": "scale", "factor": 1 / 255},
        {"step": "reshape", "shape": [9]},
        {"step": "clip", "min": 0.1, "max": 0.9},
    ]
    case("fused", "mixed", chain, np.clip(saturated / 255, 0.1, 0.9).ravel())
    symbols = given("symbols", np.array([0, 2, 3, -1, 1.2]))
    one_hot = np.zeros((5, 3))
    one_hot[[0, 1, 4], [0, 2, 1]] = 1
    case("one hot", "symbols", [{"step": "one_hot", "classes": 3}], one_hot)


def answers_of_models():
    logits = given("logits", random.standard_normal((4, 6)) * 5)
    for axis in [0, 1]:
        expected = {"logits": scipy.special.softmax(logits.astype(np.float64), axis=axis)}
        answer(f"softmax axis {axis}", ["logits"], [{"step": "softmax", "axis": axis}], expected)
    expected = {"logits": scipy.special.expit(logits.astype(np.float64))}
    answer("sigmoid", ["logits"], [{"step": "sigmoid"}], expected)
    answer("argmax", ["logits"], [{"step": "argmax", "axis": 0}], {"logits": logits.argmax(axis=0)})
    order = np.argsort(-logits, axis=1)[:, :3]
    expected = {"logits": np.take_along_axis(logits, order, axis=1), "logits_indices": order}
    answer("top_k", ["logits"], [{"step": "top_k", "k": 3}], expected)
    answer("threshold", ["logits"], [{"step": "threshold", "at": 1.0}], {"logits": logits >= 1})

    corner = random.random((60, 2)) * 8
    sides = 1 + random.random((60, 2)) * 4
    boxes = given("boxes", np.concatenate([corner + sides / 2, sides], axis=1))
    scores = given("scores", random.random((60, 3)))
    best, classes = scores.max(axis=1), scores.argmax(axis=1)
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    sized = np.concatenate([corners[:, :2], boxes[:, 2:]], axis=1)
    everything = cv2.dnn.NMSBoxes(sized.tolist(), best.tolist(), 0.4, 0.3)
    by_class = cv2.dnn.NMSBoxesBatched(sized.tolist(), best.tolist(), classes.tolist(), 0.4, 0.3)
    for suppress, kept in [("all", everything), ("class", by_class)]:
        kept = np.array(sorted(kept, key=lambda i: -best[i]))
        rows = np.concatenate([corners[kept], best[kept, None], classes[kept, None]], axis=1)
        step = {"step": "nms", "boxes": "boxes", "scores": "scores", "format": "centre"}
        step |= {"iou": 0.3, "score": 0.4, "max_boxes": 100, "suppress": suppress}
        answer(f"nms {suppress}", ["boxes", "scores"], [step], {"detections": rows})


for make in (elements, images, signals, spectrograms, answers_of_models):
    make()
json.dump({"inputs": inputs, "cases": cases, "answers": answers}, sys.stdout, separators=(",", ":"))
