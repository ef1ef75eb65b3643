"""Proofs in one file, as c2sp.org/tlog-proof says: that an event is in a log, checkable offline.

    c2sp.org/tlog-proof@v1
    extra base64(the event's header)
    index SEQ
    base64 of each hash of the inclusion proof

    the signed checkpoint

The header is what the leaf is the hash of, so such a file says by itself what happened: which
weights were live from then on, who asked, and when.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightledger.ledger.audit import checkpoints, notes
from weightledger.ledger.audit.checkpoints import Checkpoint
from weightledger.ledger.audit.notes import COSIGNATURE, Note, VerifierKey
from weightledger.ledger.errors import ProofError
from weightledger.ledger.events import merkle
from weightledger.ledger.events.event import leaf_hash

FIRST_LINE = "c2sp.org/tlog-proof@v1"

_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class Proof:
    """That the event with this header is the event `index` of a log with this checkpoint."""

    header: bytes
    index: int
    path: tuple[bytes, ...]
    checkpoint: Note

    def __str__(self) -> str:
        extra = base64.b64encode(self.header).decode()
        path = "".join(f"{base64.b64encode(one).decode()}\n" for one in self.path)
        return f"{FIRST_LINE}\nextra {extra}\nindex {self.index}\n{path}\n{self.checkpoint}"


@dataclass(frozen=True, slots=True)
class Consistency:
    """That the first `first` events of a log are the beginning of its first `second`, whose trees
    have these roots; `hashes` are the proof of RFC 6962, section 2.1.2."""

    first: int
    second: int
    first_root: bytes
    second_root: bytes
    hashes: tuple[bytes, ...]

    def to_json(self) -> dict[str, Any]:
        """Sizes, and every hash in base64, as checkpoints have them."""
        return {
            "first": self.first,
            "second": self.second,
            "first_root": base64.b64encode(self.first_root).decode(),
            "second_root": base64.b64encode(self.second_root).decode(),
            "hashes": [base64.b64encode(one).decode() for one in self.hashes],
        }


def parse(text: str) -> Proof:
    """Read a proof; nothing of it is checked yet. ProofError when it is none."""
    top, separator, checkpoint = text.partition("\n\n")
    first, *lines = top.split("\n")
    if first != FIRST_LINE or not separator:
        raise ProofError(f"this is no proof: its first line is not {FIRST_LINE!r}")
    if not lines or not lines[0].startswith("extra "):
        raise ProofError("the proof does not hold the event's header")
    header = _decoded(lines[0].removeprefix("extra "))
    index = _INDEX.fullmatch(lines[1]) if len(lines) > 1 else None
    if index is None:
        raise ProofError("the proof does not say the index of its event")
    path = tuple(_decoded(line) for line in lines[2:])
    return Proof(header, int(index[1]), path, notes.parse(checkpoint))


def check(
    proof: Proof, log_key: VerifierKey, witnesses: Sequence[VerifierKey] = (), quorum: int = 0
) -> Checkpoint:
    """Raise ProofError unless the event is in the log of this key; gives the log's checkpoint.

    At least `quorum` of the `witnesses` have to have cosigned the checkpoint.
    """
    checkpoint = checkpoints.read(proof.checkpoint)
    if checkpoint.origin != log_key.name:
        raise ProofError(f"the checkpoint is of {checkpoint.origin}, the key of {log_key.name}")
    log_key.check(proof.checkpoint)
    require_quorum(proof.checkpoint, witnesses, quorum)
    leaf = leaf_hash(proof.header)
    merkle.check_inclusion(leaf, proof.index, checkpoint.size, proof.path, checkpoint.root)
    return checkpoint


def require_quorum(note: Note, witnesses: Sequence[VerifierKey], quorum: int) -> None:
    """Raise ProofError unless at least `quorum` of these witnesses have cosigned.

    Whoever is named twice is one, and a key that is not a witness's is none.
    """
    known = [one for one in dict.fromkeys(witnesses) if one.kind == COSIGNATURE]
    signed = [one for one in known if any(map(one.made, note.signatures))]
    for witness in signed:
        witness.check(note)
    if len(signed) < quorum:
        raise ProofError(f"{len(signed)} of the known witnesses cosigned, {quorum} are asked for")


def _decoded(text: str) -> bytes:
    data = notes.decoded(text)
    if data is None:
        raise ProofError(f"this is no base64: {text[:80]!r}")
    return data
