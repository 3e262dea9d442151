"""schemathesis against a running agent: FARLIGHT_HTTP is its address.

    schemathesis_test.py SEED CASES [OFFICIAL]

It draws at least CASES requests from our own description of the service (docs/inference.openapi.yaml) and as many from
the protocol's, where OFFICIAL is that file (`specification/protocol/open_inference_rest.yaml` of its repository; it is
in no package). An answer with 5xx, an undocumented status, another content type, or a body or headers against the
description ends the run with a failure, and so does a request against the description that is accepted."""

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import yaml

OWN = Path(__file__).parents[2] / "docs" / "inference.openapi.yaml"
# Left out: that every request which fits the description is answered with success. A description cannot say which
# tensors a model takes. The others need logins, which there are none of.
CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance", "negative_data_rejection", "unsupported_method", "allow_header_conformance"]
# An input that `counter` takes: a part of the requests is to be answered.
INPUT = {
    "type": "object", "required": ["name", "shape", "datatype", "data"], "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "enum": ["x"]}, "datatype": {"type": "string", "enum": ["FP32"]},
        "shape": {"type": "array", "items": {"type": "integer", "enum": [1]}, "minItems": 1, "maxItems": 1},
        "data": {"type": "array", "items": {"type": "number", "minimum": -1000, "maximum": 1000},
                 "minItems": 1, "maxItems": 1},
    },
}


def narrowed(description, model, version, request, others):
    """Names of models that are there, beside ones that are not, and inputs that fit, beside any."""
    for path, operations in description["paths"].items():
        # Models that may be taken out of memory are others than those that are asked.
        asked = "/repository/" not in path
        names = ["counter", "watch-gestures", "nope"] if asked else ["types", "nope"]
        known = {model: names, version: ["1.0.0", "9.9.9"]}
        own = [p for p in operations.get("parameters", []) if "$ref" not in p]
        named = re.findall(r"\{(\w+)\}", path)
        operations["parameters"] = [p for p in own if p["name"] not in named] + [
            {"name": name, "in": "path", "required": True,
             "schema": {"anyOf": [{"type": "string", "enum": known[name]}] + (others if asked and name == model else [])}}
            for name in named]
    schemas = description["components"]["schemas"]
    inputs = schemas[request]["properties"]["inputs"]
    schemas[request]["properties"]["inputs"] = {"anyOf": [
        {"type": "array", "items": INPUT, "minItems": 1, "maxItems": 1}, inputs]}
    return description


def own():
    return narrowed(yaml.safe_load(OWN.read_text()), "model", "version", "request", [{"type": "string"}])


def official(path):
    """The protocol's description, with what it leaves out."""
    # Names in paths are written `${NAME}`, which makes the dollar a part of the path.
    description = yaml.safe_load(Path(path).read_text().replace("${", "{"))
    refused = {"description": "Refused", "content": {"application/json": {
        "schema": {"$ref": "#/components/schemas/inference_error_response"}}}}
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            if method in ("get", "post"):
                # It documents 200 and 400 alone; the statuses are those of Triton and KServe.
                statuses = ["400", "404"] if "MODEL_NAME" in path else []
                for status in statuses + (["413", "415", "503"] if method == "post" else []):
                    operation["responses"].setdefault(status, refused)
    schemas = description["components"]["schemas"]
    # An element that is null is a missing one here; an input may have its elements behind the JSON; an empty body
    # is none, and the body is required.
    schemas["tensor_data"]["items"]["nullable"] = True
    schemas["request_input"]["required"].remove("data")
    for operations in description["paths"].values():
        if "post" in operations:
            operations["post"]["requestBody"]["required"] = True
    return narrowed(description, "MODEL_NAME", "MODEL_VERSION", "inference_request", [])


def load_all():
    """Brings every model back that an earlier run took out of memory."""
    def post(path):
        base = "http://" + os.environ["FARLIGHT_HTTP"]
        with urllib.request.urlopen(urllib.request.Request(base + path, method="POST")) as response:
            return json.load(response)

    for model in post("/v2/repository/index"):
        if model["state"] == "UNAVAILABLE":
            post(f"/v2/repository/models/{model['name']}/load")


def run(name, description, seed, cases):
    load_all()
    # The others have nothing to draw: one case each.
    drawn = sum("{" in path or "requestBody" in operations.get(method, {})
                for path, operations in description["paths"].items()
                for method in ("get", "post", "put", "delete") if method in operations)
    with tempfile.TemporaryDirectory() as folder:
        path, report = Path(folder, "description.yaml"), Path(folder, "report.json")
        path.write_text(yaml.safe_dump(description))
        command = [Path(sys.executable).absolute().parent / "schemathesis", "--no-color", "run", path,
                   "--url", "http://" + os.environ["FARLIGHT_HTTP"], "--seed", str(seed),
                   "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing",
                   "--max-examples", str(-(-cases // drawn)),
                   "--generation-database", "none", "--continue-on-failure", "--warnings", "off",
                   "--suppress-health-check", "all", "--request-timeout", "30",
                   "--report", "json", "--report-json-path", report]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode != 0 or not report.exists():
            print(done.stdout, done.stderr)
            return False
        told = json.loads(report.read_text())
    generated = told["test_cases"]["generated"]
    rates = [rate for path, phases in told["valid_rates"].items() if path.endswith("/infer")
             for rate in phases.values()]
    accepted = sum(rate["accepted"] for rate in rates)
    print(f"schemathesis, {name} description: {generated} cases with seed {seed}, no 5xx and no breach of contract; "
          f"{accepted} inferences were answered")
    return generated >= cases and accepted > 0


def main():
    seed, cases = int(sys.argv[1]), int(sys.argv[2])
    good = [run("our own", own(), seed, cases)]
    if len(sys.argv) > 3:
        good.append(run("the protocol's", official(sys.argv[3]), seed, cases))
    sys.exit(not all(good))


main()
