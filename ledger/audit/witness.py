"""A witness: remembers the last checkpoint of each log and cosigns what continues it.

The server side of c2sp.org/tlog-witness, without HTTP. What was cosigned lies in one small SQLite
file and is durable before anything is signed, so a witness that is killed at any moment never signs
two checkpoints that contradict each other.
"""

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from weightledger.ledger import permissions
from weightledger.ledger.audit import checkpoints, notes
from weightledger.ledger.audit.checkpoints import Checkpoint
from weightledger.ledger.audit.notes import (
    COSIGNATURE,
    PLAIN,
    Note,
    SigningKey,
    VerifierKey,
    check_name,
)
from weightledger.ledger.audit.signing import key_in
from weightledger.ledger.errors import InvalidRequest, ProofError, StorageError
from weightledger.ledger.events import merkle
from weightledger.ledger.sql.sqlite_driver import driver

MOST_BYTES = 1 << 16
"""A request is never larger: 63 hashes and a checkpoint."""

TEXT = "text/plain; charset=utf-8"
SIZE = "text/x.tlog.size"

_APPLICATION = 0x574C5754  # "WLWT"
_MOST_HASHES = 63
_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")
_TABLE = (
    "CREATE TABLE IF NOT EXISTS logs (origin TEXT PRIMARY KEY, origin_hash TEXT NOT NULL UNIQUE,"
    " size INTEGER NOT NULL, root BLOB NOT NULL, note TEXT NOT NULL) STRICT"
)
_KEEP = (
    "INSERT INTO logs (origin, origin_hash, size, root, note) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (origin) DO UPDATE SET size = excluded.size, root = excluded.root,"
    " note = excluded.note"
)


@dataclass(frozen=True, slots=True)
class WitnessReply:
    """A reply: its HTTP status, its text and the text's media type."""

    status: int
    text: str
    media_type: str = TEXT


class _Refusal(Exception):
    """The request is answered with this."""

    def __init__(self, status: int, text: str, media_type: str = TEXT) -> None:
        super().__init__(text)
        self.answer = WitnessReply(status, text if text.endswith("\n") else f"{text}\n", media_type)


class WitnessBook:
    """What one witness has cosigned, and its key. Safe to use from any thread.

    `logs` are the verifier keys it trusts: a key's name is the origin of its log, and a log whose
    key was rotated has several.
    """

    def __init__(
        self,
        name: str,
        state: Path,
        logs: Sequence[VerifierKey],
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_name(name)
        if not logs:
            raise InvalidRequest("a witness needs the verifier key of a log: --log KEY")
        for key in logs:
            if key.kind != PLAIN:
                raise InvalidRequest(f"the key of {key.name} is one of a witness, not of a log")
        self._logs: dict[str, list[VerifierKey]] = {}
        for key in logs:
            self._logs.setdefault(key.name, []).append(key)
        seed = key_in(state.with_name(state.name + ".key"))
        self._key = SigningKey.from_seed(name, seed, COSIGNATURE)
        self._clock = clock
        self._lock = threading.Lock()
        self._database = _opened(state)

    @property
    def verifier(self) -> VerifierKey:
        """What others check this witness's cosignatures with."""
        return self._key.verifier

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def add_checkpoint(self, body: bytes) -> WitnessReply:
        """Answer `POST /add-checkpoint`: a cosignature, or why there is none."""
        try:
            old, proof, note = _request(body)
            note, checkpoint = self._trusted(note)
            with self._lock:
                self._require_continuation(old, proof, checkpoint)
                self._write(checkpoint, note)  # durable before it is signed
                signature = self._key.sign(note.text, int(self._clock()))
                self._write(checkpoint, note.signed([signature]))
        except _Refusal as refusal:
            return refusal.answer
        except driver.Error as error:
            return WitnessReply(500, f"the state cannot be kept: {error}\n")
        return WitnessReply(200, signature.line())

    def checkpoint(self, origin_hash: str) -> WitnessReply:
        """Answer `GET /ORIGIN-HASH/checkpoint`: the last checkpoint cosigned of a log."""
        with self._lock:
            row = self._database.execute(
                "SELECT note FROM logs WHERE origin_hash = ?", (origin_hash,)
            ).fetchone()
        if row is None or not any(map(self.verifier.made, notes.parse(row[0]).signatures)):
            return WitnessReply(404, "no checkpoint of this log was cosigned\n")
        return WitnessReply(200, row[0])

    def _trusted(self, note: Note) -> tuple[Note, Checkpoint]:
        """A note with the signatures of its log's keys alone, which hold, and its checkpoint."""
        try:
            checkpoint = checkpoints.read(note)
        except ProofError as error:
            raise _Refusal(400, str(error)) from None
        keys = self._logs.get(checkpoint.origin)
        if keys is None:
            raise _Refusal(404, f"the log {checkpoint.origin} is not known here")
        signed = [key for key in keys if any(map(key.made, note.signatures))]
        if not signed:
            raise _Refusal(403, f"no key of {checkpoint.origin} that is trusted here has signed")
        for key in signed:
            try:
                key.check(note)
            except ProofError as error:
                raise _Refusal(403, str(error)) from None
        ours = [one for one in note.signatures if any(key.made(one) for key in signed)]
        return Note(note.text, tuple(ours)), checkpoint

    def _require_continuation(
        self, old: int, proof: Sequence[bytes], checkpoint: Checkpoint
    ) -> None:
        """Refuse a checkpoint that is not proven to continue the last one."""
        if old > checkpoint.size:
            raise _Refusal(400, f"the old size {old} is larger than the size {checkpoint.size}")
        row = self._database.execute(
            "SELECT size, root FROM logs WHERE origin = ?", (checkpoint.origin,)
        ).fetchone()
        size, root = row or (0, merkle.EMPTY_ROOT)
        if old != size:
            raise _Refusal(409, f"{size}\n", SIZE)
        try:
            merkle.check_consistency(size, checkpoint.size, proof, root, checkpoint.root)
        except ProofError as error:
            raise _Refusal(422, str(error)) from None

    def _write(self, checkpoint: Checkpoint, note: Note) -> None:
        origin_hash = sha256(checkpoint.origin.encode()).hexdigest()
        values = (checkpoint.origin, origin_hash, checkpoint.size, checkpoint.root, str(note))
        self._database.execute(_KEEP, values)  # each statement is a transaction, synced


def _request(body: bytes) -> tuple[int, list[bytes], Note]:
    """The old size, the proof and the note of a request's body."""
    try:
        head, separator, rest = body.decode().partition("\n\n")
    except UnicodeDecodeError:
        raise _Refusal(400, "expected UTF-8") from None
    first, *lines = head.split("\n")
    old = _OLD.fullmatch(first)
    if old is None or not separator:
        raise _Refusal(400, "expected 'old SIZE', a consistency proof, an empty line, a checkpoint")
    if len(lines) > _MOST_HASHES:
        raise _Refusal(400, f"expected at most {_MOST_HASHES} hashes, got {len(lines)}")
    proof = []
    for line in lines:
        hash_ = notes.decoded(line)
        if hash_ is None or len(hash_) != merkle.HASH_BYTES:
            raise _Refusal(400, f"expected the base64 of 32 bytes, got {line[:80]!r}")
        proof.append(hash_)
    try:
        return int(old[1]), proof, notes.parse(rest)
    except ProofError as error:
        raise _Refusal(400, str(error)) from None


def _opened(state: Path) -> "driver.Connection":
    permissions.make_file(state)
    try:
        database = driver.connect(state, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA synchronous = EXTRA")
        database.execute("PRAGMA locking_mode = EXCLUSIVE")  # one witness a file
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and application != _APPLICATION:
            raise StorageError(f"{state} is a database of something else, not of a witness")
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        database.execute(_TABLE)
    except driver.Error as error:
        raise StorageError(f"{state} cannot be used for a witness: {error}") from error
    return database
