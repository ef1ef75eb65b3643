"""Signing a log's checkpoints: the key, and never two that contradict each other.

The key belongs to whoever runs the ledger: 32 bytes, given, or made at first use in a file that
only its owner reads. Beside it lies the last checkpoint signed for each log. A log that is no
continuation of it — cut off, forged, restored from an older copy — is not signed again.
"""

import base64
import os
import stat
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from weightledger.ledger.audit import checkpoints, notes
from weightledger.ledger.audit.checkpoints import Checkpoint
from weightledger.ledger.audit.notes import Note, SigningKey
from weightledger.ledger.audit.proofs import Proof
from weightledger.ledger.audit.tree import Tree
from weightledger.ledger.errors import InvalidRequest, NotFound, ProofError
from weightledger.ledger.store import EventStore

KEY_FILE = "signing.key"
CHECKPOINTS = "checkpoints"

_SEED_BYTES = 32


def origin(store: EventStore) -> str:
    """A log's name for all time: its model's, and the start of its first event's hash."""
    first = store.event(0)
    if first is None:
        raise NotFound(f"the log of {store.model!r} has no first event")
    return f"weightledger/{quote(store.model, safe='')}/{first.hash.hex()[:16]}"


class Signer:
    """Signs checkpoints of the logs of one ledger, and remembers what it signed in `folder`."""

    def __init__(self, folder: Path, seed: bytes) -> None:
        self._folder = folder
        self._seed = seed

    @classmethod
    def open(cls, folder: Path, given: str | None = None) -> "Signer":
        """The signer of a data folder: with the key `given` (base64), else the one in the folder,
        which is made when there is none. InvalidRequest for a key that is none, or that others can
        read."""
        return cls(folder, _decoded(given) if given is not None else _kept(folder / KEY_FILE))

    def key(self, store: EventStore) -> SigningKey:
        """The key for one log; its verifier key is what others check its checkpoints with."""
        return SigningKey.from_seed(origin(store), self._seed)

    def checkpoint(self, store: EventStore) -> Note:
        """A signed checkpoint of the log as it is now.

        ProofError when the log is no continuation of the one last signed.
        """
        key = self.key(store)
        head = store.head()
        tree = Tree(store)
        now = Checkpoint(key.name, head.seq + 1, tree.root(head.seq + 1))
        last = self.last(store)
        if last is not None:
            require_continuation(store, checkpoints.read(last))
            if checkpoints.read(last) == now:
                return last
        note = Note(now.text()).signed([key.sign(now.text())])
        _write(self._file(key.name), str(note))
        return note

    def last(self, store: EventStore) -> Note | None:
        """The checkpoint of this log that was signed last; ProofError if we did not sign it."""
        key = self.key(store)
        try:
            text = self._file(key.name).read_text("utf-8")
        except FileNotFoundError:
            return None
        note = notes.parse(text)
        key.verifier.check(note)
        return note

    def prove(self, store: EventStore, seq: int) -> Proof:
        """That an event is in the log, with a checkpoint of the log as it is now."""
        event = store.event(seq)
        if event is None:
            raise NotFound(f"Event {seq} not found")
        note = self.checkpoint(store)
        size = checkpoints.read(note).size
        path = Tree(store).inclusion_proof(seq, size)
        return Proof(event.header, seq, tuple(path), note)

    def _file(self, name: str) -> Path:
        return self._folder / CHECKPOINTS / sha256(name.encode()).hexdigest()[:32]


def require_continuation(store: EventStore, checkpoint: Checkpoint) -> None:
    """Raise ProofError unless the log still begins with the events that a checkpoint is over."""
    if checkpoint.origin != origin(store):
        raise ProofError(f"the checkpoint is of {checkpoint.origin}, the log is {origin(store)}")
    size = store.head().seq + 1
    if size < checkpoint.size:
        raise ProofError(
            f"the log has {size} events, and {checkpoint.size} were signed: it was cut off, or is"
            " an older copy"
        )
    root = Tree(store).root(checkpoint.size)
    if root != checkpoint.root:
        raise ProofError(
            f"the first {checkpoint.size} events are not those that were signed: their root was"
            f" {checkpoint.root.hex()} and is {root.hex()}"
        )


def _kept(file: Path) -> bytes:
    """The key in a file; a new one where there is none yet."""
    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return _made(file)
    with os.fdopen(handle, "r", encoding="ascii") as stream:
        if stat.S_IMODE(os.fstat(handle).st_mode) & 0o077:
            raise InvalidRequest(f"{file} can be read by others than its owner: chmod 600 {file}")
        return _decoded(stream.read().strip())


def _made(file: Path) -> bytes:
    seed = os.urandom(_SEED_BYTES)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another process was faster
        return _kept(file)
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(base64.b64encode(seed).decode() + "\n")
        stream.flush()
        os.fsync(handle)
    return seed


def _decoded(text: str) -> bytes:
    seed = notes.decoded(text)
    if seed is None or len(seed) != _SEED_BYTES:
        raise InvalidRequest(f"a signing key is the base64 of {_SEED_BYTES} bytes")
    return seed


def _write(file: Path, text: str) -> None:
    """Replace a file at once, durably: what is signed is never forgotten."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(handle)
    fresh.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
