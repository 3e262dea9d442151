"""Makes the repositories in crates/release/tests/data/python-tuf with python-tuf; their keys are thrown away.

    python tests/interop/static_repositories.py FOLDER
"""

import json
import sys
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole, Delegations, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

EXPIRES = datetime(2999, 1, 1, tzinfo=timezone.utc)
TOP = ("root", "targets", "snapshot", "timestamp")


def bytes_of(role, signers, compact=True):
    """The file of a role, signed."""
    metadata = Metadata(role)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=compact))


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def artifact(folder, targets, name, content, hashes):
    """Adds a target and writes it under each of its digests."""
    targets.targets[name] = TargetFile.from_data(name, content, hashes)
    directory, _, file = name.rpartition("/")
    for digest in targets.targets[name].hashes.values():
        write(folder / "targets" / directory / f"{digest}.{file}", content)


def below_root(folder, signers, roles, compact):
    """Writes targets roles, then the snapshot and timestamp over them."""
    snapshot = Snapshot(expires=EXPIRES)
    snapshot.meta.clear()
    for name, (role, role_signers) in roles.items():
        data = bytes_of(role, role_signers, compact)
        write(folder / "metadata" / f"{role.version}.{name}.json", data)
        snapshot.meta[f"{name}.json"] = MetaFile(role.version, len(data), {"sha256": sha256(data).hexdigest()})
    write(folder / "metadata" / "1.snapshot.json", bytes_of(snapshot, [signers["snapshot"]], compact))
    timestamp = Timestamp(expires=EXPIRES, snapshot_meta=MetaFile(1))
    write(folder / "metadata" / "timestamp.json", bytes_of(timestamp, [signers["timestamp"]], compact))


def delegated(folder):
    """One root; a target in a folder that a delegated role speaks for; foreign fields; indented files."""
    signers = {role: CryptoSigner.generate_ed25519() for role in (*TOP, "family")}
    root = Root(expires=EXPIRES, consistent_snapshot=True)
    for role in TOP:
        root.add_key(signers[role].public_key, role)
    root.unrecognized_fields["x-signing-period"] = {"days": 60}
    write(folder / "metadata" / "1.root.json", bytes_of(root, [signers["root"]], False))
    targets, family = Targets(expires=EXPIRES), Targets(version=2, expires=EXPIRES)
    targets.delegations = Delegations({}, {
        "other": DelegatedRole("other", [], 1, True, path_hash_prefixes=["f", "00"]),
        "family": DelegatedRole("family", [], 1, True, ["family/*"]),
    })
    targets.add_key(signers["family"].public_key, "family")
    artifact(folder, family, "family/artifact", b"made by python-tuf\n", ["sha256"])
    roles = {"targets": (targets, [signers["targets"]]), "family": (family, [signers["family"]])}
    below_root(folder, signers, roles, False)


def rotated(folder):
    """Six roots, each with other keys than the last; thresholds up and down; SHA-512; compact files."""
    signers = {role: CryptoSigner.generate_ed25519() for role in TOP}
    root = Root(expires=EXPIRES, consistent_snapshot=True, spec_version="1.0")
    for role in TOP[1:]:
        root.add_key(signers[role].public_key, role)
    old = []
    for version, (count, threshold) in enumerate([(1, 1), (3, 2), (5, 3), (5, 4), (2, 1), (1, 1)], start=1):
        for signer in old:
            if signer.public_key.keyid in root.roles["root"].keyids:
                root.revoke_key(signer.public_key.keyid, "root")
        new = [CryptoSigner.generate_ed25519() for _ in range(count)]
        for signer in new:
            root.add_key(signer.public_key, "root")
        root.roles["root"].threshold = threshold
        root.version = version
        write(folder / "metadata" / f"{version}.root.json", bytes_of(root, [*new, *old]))
        old = new
    targets = Targets(version=7, expires=EXPIRES)
    artifact(folder, targets, "trusted_root.json", b'{"made": "by python-tuf"}\n', ["sha512"])
    below_root(folder, signers, {"targets": (targets, [signers["targets"]])}, True)


def foreign(folder, signer):
    """Roots 1 and 2, the second of which needs a key of another kind; a third one with a wrong signature."""
    ours = CryptoSigner.generate_ed25519()
    root = Root(expires=EXPIRES, consistent_snapshot=True)
    for role in TOP:
        root.add_key(ours.public_key, role)
    write(folder / "1.root.json", bytes_of(root, [ours]))
    root.add_key(signer.public_key, "root")
    root.roles["root"].threshold = 2
    root.version = 2
    second = bytes_of(root, [ours, signer])
    write(folder / "2.root.json", second)
    root.version = 3
    third = json.loads(bytes_of(root, [ours, signer]))
    third["signatures"][1]["sig"] = json.loads(second)["signatures"][1]["sig"]
    write(folder / "3.root.json", json.dumps(third).encode())


def main():
    folder = Path(sys.argv[1])
    delegated(folder / "delegated")
    rotated(folder / "rotated")
    foreign(folder / "keys-rsa", CryptoSigner.generate_rsa())
    foreign(folder / "keys-ecdsa", CryptoSigner.generate_ecdsa())


if __name__ == "__main__":
    main()
