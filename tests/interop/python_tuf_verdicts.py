"""python-tuf's verdict on repositories in memory: one JSON object a line in, one out. Started by the test
`differential` of tests/interop/tuf-client, which says what they are.

In:  {"now": ms, "root": bytes, "stored": {path: bytes}, "files": {path: bytes}, "targets": [name]}
Out: {"accepted": bool, "targets": [sha256 or null], "stored": {path: bytes}}         (bytes are base64)
"""

import base64
import hashlib
import json
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.ngclient import FetcherInterface, Updater

REFUSED = (RepositoryError, DownloadError, ValueError, OSError)


class Files(FetcherInterface):
    """Fetches from a dictionary."""

    def __init__(self, files):
        self.files = files

    def _fetch(self, url):
        data = self.files.get(url.removeprefix("memory://"))
        if data is None:
            raise DownloadHTTPError("no such file", 404)
        return iter([base64.b64decode(data)])


def verdict(request, folder):
    metadata, targets = folder / "metadata", folder / "targets"
    (metadata / "root_history").mkdir(parents=True)
    targets.mkdir()
    for path, data in request["stored"].items():
        (metadata / path).write_bytes(base64.b64decode(data))
    def refreshed():
        updater = Updater(str(metadata), "memory://metadata/", str(targets), "memory://targets/",
                          Files(request["files"]), bootstrap=base64.b64decode(request["root"]))
        updater._trusted_set.reference_time = datetime.fromtimestamp(request["now"] / 1000, timezone.utc)
        updater.refresh()
        return updater

    accepted, found = False, []
    try:
        refreshed()
        accepted = True
    except REFUSED:
        pass
    for name in request["targets"] if accepted else []:
        digest = None
        try:
            # An updater each: one that has met a role by one delegator trusts it by every other (the suite's
            # test_cached_role_is_verified_against_current_delegator, which python-tuf is known to fail).
            updater = refreshed()
            target = updater.get_targetinfo(name)
            if target is not None:
                digest = hashlib.sha256(Path(updater.download_target(target)).read_bytes()).hexdigest()
        except REFUSED:
            pass
        found.append(digest)
    stored = {str(path.relative_to(metadata)): base64.b64encode(path.read_bytes()).decode()
              for path in metadata.rglob("*.json") if not path.is_symlink()}
    return {"accepted": accepted, "targets": found, "stored": stored}


for line in sys.stdin:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(verdict(json.loads(line), Path(folder))), flush=True)
