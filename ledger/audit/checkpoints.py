"""Checkpoints: how many events a log has and the root of its tree, signed.

A checkpoint (c2sp.org/tlog-checkpoint) is a note of three lines: the log's origin, the count of its
events, and the base64 of the Merkle tree's root. Whoever holds one can tell later that nothing
before it was changed, dropped or reordered.
"""

import base64
import re
from dataclasses import dataclass

from weightledger.ledger.audit.notes import Note, decoded
from weightledger.ledger.errors import ProofError
from weightledger.ledger.events.merkle import HASH_BYTES, MOST_LEAVES

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log claims: `size` events, whose tree has the `root` (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def read(note: Note) -> Checkpoint:
    """The checkpoint of a note, whose signatures are not looked at; ProofError if it is none."""
    lines = note.text[:-1].split("\n")
    if len(lines) < 3 or not all(lines):
        raise ProofError("a checkpoint has three lines: origin, size, root")
    origin, size, root = lines[:3]
    if not _SIZE.fullmatch(size) or int(size) > MOST_LEAVES:
        raise ProofError(f"the size of a checkpoint is a whole number, got {size[:40]!r}")
    digest = decoded(root)
    if digest is None or len(digest) != HASH_BYTES:
        raise ProofError(f"the root of a checkpoint is the base64 of 32 bytes, got {root[:80]!r}")
    return Checkpoint(origin, int(size), digest)
