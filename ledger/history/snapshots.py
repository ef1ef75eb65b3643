"""Snapshots: whole states that a rebuild can start from.

A snapshot is a manifest blob (canonical JSON: every tensor's name, dtype, shape and digest, and
the aliases) and one blob per tensor, addressed by the tensor's digest. So a tensor that did not
change since another snapshot is not stored again, and a manifest is small. Manifests are here,
tensors in `history.snapshot_tensors`.
"""

import json

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.store.attached import Snapshot
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest

_FORMAT = 1


def manifest(state: StateDigest) -> bytes:
    """The manifest of a state, as the bytes that are stored."""
    return canonical(
        {
            "format": _FORMAT,
            "tensors": [
                {
                    "name": spec.name,
                    "dtype": spec.dtype,
                    "shape": list(spec.shape),
                    "digest": state.digests[spec.name].hex(),
                }
                for spec in state.specs.values()
            ],
            "aliases": dict(state.aliases),
        }
    )


def read_manifest(data: bytes) -> StateDigest:
    """The state a manifest describes; CorruptLedger when it is none."""
    try:
        fields = json.loads(data)
        if fields["format"] != _FORMAT:
            raise CorruptLedger(f"snapshot format {fields['format']} is not known")
        specs = [
            TensorSpec(item["name"], item["dtype"], tuple(item["shape"]))
            for item in fields["tensors"]
        ]
        digests = {item["name"]: bytes.fromhex(item["digest"]) for item in fields["tensors"]}
        return StateDigest(specs, digests, fields["aliases"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptLedger(f"snapshot manifest cannot be read: {error!r}") from None


def describe(node: int, state: StateDigest) -> tuple[Snapshot, bytes]:
    """The snapshot of a state at a node, and the bytes of its manifest."""
    data = manifest(state)
    size = len(data) + sum(spec.nbytes for spec in state.specs.values())
    return Snapshot(node, content_digest(data), size), data
