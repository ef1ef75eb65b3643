"""Asking witnesses to cosign, as c2sp.org/tlog-witness says.

A witness is a server of somebody else's that remembers the last checkpoint of a log it cosigned,
and cosigns a later one only with a proof that it continues that. So a log that was cut off, forged
or forked has no cosignature, even where whoever runs it holds the signing key.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import httpx2

from weightledger.ledger.audit import checkpoints, notes
from weightledger.ledger.audit.checkpoints import Checkpoint
from weightledger.ledger.audit.notes import COSIGNATURE, Note, Signature, VerifierKey
from weightledger.ledger.audit.signing import Signer, require_continuation
from weightledger.ledger.audit.tree import EventTree
from weightledger.ledger.errors import InvalidRequest, ProofError, Unavailable
from weightledger.ledger.http import client
from weightledger.ledger.store import EventStore

TIMEOUT_S = 5.0
"""How long a witness may take for an answer."""

_ROUNDS = 3  # others of our processes may ask the same witness meanwhile
_MOST_BYTES = 1 << 16
_SIZE = re.compile(r"(0|[1-9][0-9]{0,18})\n")


class LogContradicted(ProofError):
    """A checkpoint that this log's own key has signed is not what the log says now.

    The log was cut off, forged, forked or restored from an older copy; the checkpoint proves it.
    """


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness: where it is, and the key that its cosignatures are checked with."""

    url: str
    key: VerifierKey

    @classmethod
    def parse(cls, text: str) -> "Witness":
        """Read `URL#KEY`; InvalidRequest when it is none."""
        url, _, key = text.strip().partition("#")
        if not key:
            raise InvalidRequest(
                f"a witness is URL#KEY, its address and its verifier key; got {text!r}",
                param="witness",
            )
        verifier = VerifierKey.parse(key)
        if verifier.kind != COSIGNATURE:
            raise InvalidRequest(
                f"the key of the witness {url} is one of a log, not of a witness", param="witness"
            )
        client(url, param="witness").close()  # says what is wrong with the URL
        return cls(url.rstrip("/"), verifier)

    def __str__(self) -> str:
        return f"{self.key.name} at {self.url}"


def require_distinct(known: Sequence[Witness]) -> None:
    """InvalidRequest when a witness is named twice: a quorum counts witnesses."""
    for at, witness in enumerate(known):
        if any(witness.key == other.key for other in known[:at]):
            raise InvalidRequest(
                f"the witness {witness.key.name} is named twice: it is one witness", param="witness"
            )


def cosign(
    witness: Witness, store: EventStore, signer: Signer, note: Note, known: int
) -> Signature:
    """The witness's cosignature of a checkpoint; `known` is the size it cosigned last, as far as
    is known.

    Unavailable when it does not answer, LogContradicted when it holds a checkpoint of this log that
    the log does not continue, ProofError for whatever else it says.
    """
    checkpoint, tree = checkpoints.read(note), EventTree(store)
    with _client(witness) as asked:
        for _ in range(_ROUNDS):
            old = min(known, checkpoint.size)
            proof = tree.consistency_proof(old, checkpoint.size)
            reply = _send(asked, witness, "POST", "/add-checkpoint", _body(old, proof, note))
            if reply.status_code == 200:
                return _signature(witness, note, reply.text)
            if reply.status_code == 409:
                size = _SIZE.fullmatch(reply.text)
                if size is None or int(size[1]) == old:
                    raise ProofError(f"{witness} answers 409 without the size that it knows")
                known = int(size[1])
                if known <= checkpoint.size:
                    continue
            elif reply.status_code != 422:
                said = reply.text.strip()[:200] or "nothing"
                raise ProofError(f"{witness} answers {reply.status_code}: {said}")
            held(witness, store, signer)  # raises where what the witness holds proves it
            raise ProofError(
                f"{witness} answers {reply.status_code}, although the log continues what it holds"
            )
    raise ProofError(f"{witness} named another size {_ROUNDS} times")


def held(witness: Witness, store: EventStore, signer: Signer) -> Checkpoint:
    """The last checkpoint of a log that a witness cosigned, found to be continued by the log.

    Unavailable when it does not answer, LogContradicted when the log does not continue it,
    ProofError for whatever else it says.
    """
    keys = signer.verifier_keys(store)
    name = keys[0].name
    path = f"/{sha256(name.encode()).hexdigest()}/checkpoint"
    with _client(witness) as asked:
        reply = _send(asked, witness, "GET", path)
    if reply.status_code == 404:
        raise ProofError(f"{witness} has cosigned no checkpoint of this log")
    if reply.status_code != 200:
        raise ProofError(f"{witness} answers {reply.status_code}: {reply.text.strip()[:200]}")
    note = notes.parse(reply.text)
    witness.key.check(note)
    ours = [key for key in keys if any(map(key.made, note.signatures))]
    if not ours:
        raise ProofError(f"{witness} shows a checkpoint that this log's key has not signed")
    for key in ours:
        key.check(note)
    checkpoint = checkpoints.read(note)
    try:
        require_continuation(store, checkpoint)
    except ProofError as error:
        raise LogContradicted(f"{witness} holds a checkpoint that we signed: {error}") from None
    return checkpoint


def _client(witness: Witness) -> httpx2.Client:
    return client(witness.url, param="witness", timeout=TIMEOUT_S, follow_redirects=False)


def _send(
    asked: httpx2.Client, witness: Witness, method: str, path: str, body: str = ""
) -> httpx2.Response:
    try:
        reply = asked.request(method, path, content=body.encode())
    except httpx2.HTTPError as error:
        raise Unavailable(f"{witness} does not answer: {error or type(error).__name__}") from None
    if reply.status_code >= 500 or reply.status_code == 429:
        raise Unavailable(f"{witness} answers {reply.status_code}")
    if len(reply.content) > _MOST_BYTES:
        raise ProofError(f"{witness} answers {len(reply.content)} bytes")
    return reply


def _body(old: int, proof: Sequence[bytes], note: Note) -> str:
    lines = "".join(f"{base64.b64encode(one).decode()}\n" for one in proof)
    return f"old {old}\n{lines}\n{note}"


def _signature(witness: Witness, note: Note, text: str) -> Signature:
    """The cosignature in a reply; lines of other keys are passed over, as they have to be."""
    lines = [notes.signature(line) for line in text.splitlines()]
    mine = [one for one in lines if witness.key.made(one)]
    if not mine:
        raise ProofError(f"{witness} answers without a cosignature of its key")
    witness.key.check(Note(note.text, tuple(mine)))
    return mine[-1]
