"""Our TUF client and python-tuf's ngclient on the same repositories: python-tuf's and ours, whole and damaged.

    python tests/interop/python_tuf_test.py PROGRAMS [SEED [CASES]]

PROGRAMS is the folder of tuf-client, farlight and farlight-cloud. Each damaged repository must get the same
verdict from both clients, by one that knows the first root only and by one that has seen the whole repository.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.ngclient import Updater

import farlight_repository
import static_repositories

PROGRAMS = Path(sys.argv[1]).resolve()
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(2**32)
CASES = int(sys.argv[3]) if len(sys.argv) > 3 else 150


class Server(BaseHTTPRequestHandler):
    """Serves the dictionary `files` by path."""

    files = {}

    def do_GET(self):
        data = self.files.get(self.path.lstrip("/"))
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        try:
            self.wfile.write(data or b"")
        except ConnectionError:
            pass  # The client had read as much as it takes.

    def log_message(self, *_):
        pass


def read(folder):
    """The files of a repository by path below its address."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parts[len(folder.parts)] != "blobs")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def ours(url, state, name):
    """Whether our client gets the target; what it says."""
    out = Path(state) / "out"
    out.mkdir(exist_ok=True)
    (out / name.replace("/", "%2F")).unlink(missing_ok=True)
    command = [PROGRAMS / "tuf-client", "--metadata-dir", Path(state) / "metadata", "--metadata-url", f"{url}/metadata",
               "--target-base-url", f"{url}/targets", "--target-dir", out, "--target-name", name, "download"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return run.returncode == 0, run.stderr.strip()


def theirs(url, state, name):
    """The same of python-tuf."""
    out = Path(state) / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    metadata = Path(state) / "metadata"
    try:
        updater = Updater(str(metadata), f"{url}/metadata/", str(out), f"{url}/targets/", bootstrap=None)
        updater.refresh()
        target = updater.get_targetinfo(name)
        if target is None:
            return False, "no such target"
        updater.download_target(target)
        return True, ""
    except (RepositoryError, DownloadError, OSError, ValueError) as error:
        return False, f"{type(error).__name__}: {error}"


CLIENTS = {"farlight": ours, "python-tuf": theirs}


def first(folder, root):
    """A client's state that knows this root alone."""
    state = Path(tempfile.mkdtemp(dir=folder))
    (state / "metadata").mkdir()
    (state / "metadata" / "root.json").write_bytes(root)
    return state


def metadata(files):
    return sorted(path for path in files if path.startswith("metadata/"))


def flip(files, rng):
    path = rng.choice(sorted(files))
    data = bytearray(files[path])
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    files[path] = bytes(data)
    return f"bit of byte {at} of {path}"


def cut(files, rng):
    path = rng.choice(sorted(files))
    length = rng.randrange(len(files[path]))
    files[path] = files[path][:length]
    return f"{path} cut to {length}"


def remove(files, rng):
    path = rng.choice(sorted(files))
    del files[path]
    return f"{path} removed"


def extend(files, rng):
    path = rng.choice(sorted(files))
    files[path] += b" " * rng.choice([1, 1000, 6_000_000])
    return f"{path} extended to {len(files[path])}"


def exchange(files, rng):
    one, other = rng.sample(metadata(files), 2)
    files[one] = files[other]
    return f"{other} in place of {one}"


def edit(files, rng):
    """Changes a signed field, without signing again."""
    path = rng.choice(metadata(files))
    document = json.loads(files[path])
    field, value = rng.choice([
        ("version", document["signed"]["version"] + rng.choice([-1, 1, 5])),
        ("expires", "2001-01-01T00:00:00Z"),
        ("_type", rng.choice(["root", "targets", "snapshot", "timestamp", "mirrors"])),
        ("spec_version", rng.choice(["1.0.0", "2.0.0", "x"])),
    ])
    document["signed"][field] = value
    files[path] = json.dumps(document).encode()
    return f"{field} of {path} set to {value}"


def signatures(files, rng):
    path = rng.choice(metadata(files))
    document = json.loads(files[path])
    what = rng.choice(["none", "empty", "shuffled key"])
    if what == "none":
        document["signatures"] = []
    elif what == "empty":
        for signature in document["signatures"]:
            signature["sig"] = ""
    else:
        for signature in document["signatures"]:
            signature["keyid"] = signature["keyid"][::-1]
    files[path] = json.dumps(document).encode()
    return f"signatures of {path}: {what}"


MUTATIONS = [flip, flip, cut, remove, extend, exchange, edit, signatures]


def compare(name, whole, target, rng, server, url, folder):
    """Damages a repository again and again, and compares the verdicts."""
    root = whole["metadata/1.root.json"]
    server.files = whole
    seen = {}
    for client, get in CLIENTS.items():
        seen[client] = first(folder, root)
        ok, why = get(url, seen[client], target)
        assert ok, f"{client} refuses {name}: {why}"
    print(f"{name}: accepted by both")
    refused = 0
    for case in range(CASES):
        server.files = dict(whole)
        what = rng.choice(MUTATIONS)(server.files, rng)
        for start in ("first root", "whole repository seen"):
            verdicts = {}
            for client, get in CLIENTS.items():
                state = first(folder, root)
                if start != "first root":
                    shutil.rmtree(state)
                    shutil.copytree(seen[client], state)
                verdicts[client] = get(url, state, target)
                shutil.rmtree(state)
            assert len({ok for ok, _ in verdicts.values()}) == 1, (
                f"{name}, case {case} of seed {SEED}, {start}: {what}: {verdicts}")
            refused += not verdicts["farlight"][0]
    print(f"{name}: {CASES} damaged ones, the same verdict each ({refused} of {2 * CASES} refused)")


def main():
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        mine = read(farlight_repository.make(PROGRAMS, folder))
        for target in ("config/1.0.0.json", "config/1.2.0.json"):
            compare(f"ours ({target})", mine, target, rng, Server, url, folder)
        for make, target in ((static_repositories.delegated, "family/artifact"),
                             (static_repositories.rotated, "trusted_root.json")):
            made = folder / make.__name__
            make(made)
            compare(f"python-tuf's ({make.__name__})", read(made), target, rng, Server, url, folder)
    server.shutdown()


if __name__ == "__main__":
    main()
