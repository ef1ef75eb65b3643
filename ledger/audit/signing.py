"""Signing a log's checkpoints: the key, and never two that contradict each other.

The key belongs to whoever runs the ledger: 32 bytes, given, or made at first use in a file that
only its owner reads. Beside it lies, for each log, the last checkpoint that was signed, and the
last that witnesses have cosigned. A log that is no continuation of them — cut off, forged, restored
from an older copy — is not signed again.
"""

import base64
import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from weightledger.ledger.audit import checkpoints, durable, notes
from weightledger.ledger.audit.checkpoints import Checkpoint
from weightledger.ledger.audit.notes import PLAIN, Note, Signature, SigningKey, VerifierKey
from weightledger.ledger.audit.proofs import Consistency, Proof
from weightledger.ledger.audit.tree import EventTree
from weightledger.ledger.errors import InvalidRequest, NotFound, ProofError, StorageError
from weightledger.ledger.events import SIGNING_KEY_ROTATED
from weightledger.ledger.events.bodies import KeyRotation, body_of
from weightledger.ledger.store import EventFilter, EventStore

KEY_FILE = "signing.key"
CHECKPOINTS = "checkpoints"

_SEED_BYTES = 32
_MOST_ROTATIONS = 1000
_LOCK = "lock"
_WITNESSED = ".witnessed"


def origin(store: EventStore) -> str:
    """A log's name for all time: its model's, and the start of its first event's hash."""
    first = store.event(0)
    if first is None:
        raise NotFound(f"the log of {store.model!r} has no first event")
    return f"weightledger/{quote(store.model, safe='')}/{first.hash.hex()[:16]}"


class Signer:
    """Signs checkpoints of the logs of one ledger, and remembers what it signed in `folder`.

    Processes that share the folder sign one after the other. The key is read when it is needed, so
    a rotation is noticed by those that are running. StorageError from whatever needs the folder
    where that was moved, removed or replaced since: another one of its name has neither the key nor
    what was signed.
    """

    def __init__(self, folder: Path, given: str | None = None) -> None:
        self._path = folder
        self._given = given
        self._identity = _identity(folder)

    @classmethod
    def open(cls, folder: Path, given: str | None = None) -> "Signer":
        """The signer of a data folder: with the key `given` (base64), else the one in the folder,
        which is made when there is none.

        InvalidRequest for a key that is none, that others can read, that cannot be read, or that is
        gone although it has signed.
        """
        signer = cls(folder, given)
        signer.seed()
        signer._identity = _identity(folder)
        return signer

    def key(self, store: EventStore) -> SigningKey:
        """The key for one log; its verifier key is what others check its checkpoints with."""
        return SigningKey.from_seed(origin(store), self.seed())

    def verifier_keys(self, store: EventStore) -> list[VerifierKey]:
        """The keys that checkpoints of a log may be signed with: today's, and those before it."""
        own = self.key(store).verifier
        rotated = EventFilter(kinds=(SIGNING_KEY_ROTATED,))
        events = store.select(rotated, limit=_MOST_ROTATIONS)
        past = [body_of(event, KeyRotation).old for event in events]
        return [own, *(VerifierKey(own.name, PLAIN, one) for one in past if one is not None)]

    def checkpoint(self, store: EventStore) -> Note:
        """A signed checkpoint of the log as it is now.

        ProofError when the log is no continuation of the one last signed.
        """
        with alone(self._folder):
            return self.sign(store, self.last(store), [self.key(store)])

    def sign(self, store: EventStore, last: Note | None, keys: Sequence[SigningKey]) -> Note:
        """A checkpoint of the log as it is now, signed by all of these; `last` is the one before.

        Whoever calls this holds `alone`.
        """
        size, tree = store.head().seq + 1, EventTree(store)
        now = Checkpoint(keys[0].name, size, tree.root(size))
        if last is not None:
            before = checkpoints.read(last)
            require_continuation(store, before, tree)
            signed = [any(map(key.verifier.made, last.signatures)) for key in keys]
            if before == now and all(signed):
                return last
        note = Note(now.text()).signed([key.sign(now.text()) for key in keys])
        durable.replace(self._file(now.origin), str(note))
        return note

    def last(self, store: EventStore, *, checked: bool = True) -> Note | None:
        """The checkpoint of this log that was signed last; ProofError if we did not sign it.

        Not `checked`: whoever signed it.
        """
        return self._remembered(store, "", checked=checked)

    def witnessed(self, store: EventStore) -> Note | None:
        """The last checkpoint that witnesses have cosigned."""
        return self._remembered(store, _WITNESSED, checked=True)

    def cosigned(self, store: EventStore, note: Note, signatures: Iterable[Signature]) -> Note:
        """Remember that witnesses have cosigned a checkpoint; gives it with what they signed."""
        with alone(self._folder):
            name = origin(store)
            known = self.witnessed(store)
            if known is not None and known.text == note.text:
                note = note.signed(known.signatures)
            note = note.signed(signatures)
            size = checkpoints.read(note).size
            if known is None or size >= checkpoints.read(known).size:
                durable.replace(self._file(name, _WITNESSED), str(note))
            last = self.last(store)
            if last is not None and last.text == note.text:
                durable.replace(self._file(name), str(note))
        return note

    def prove(self, store: EventStore, seq: int, digest: str | None = None) -> Proof:
        """That an event is in the log, with a checkpoint that covers it.

        That is the last one which witnesses have cosigned, where it does, and else one of the log
        as it is now. With `digest`, the hex `X-Weights-Digest` of a reply, the proof is the receipt
        that these weights were live from that event on; NotFound when they were not.
        """
        event = store.event(seq)
        if event is None:
            raise NotFound(f"Event {seq} not found")
        if digest is not None and event.state_after.hex() != digest.strip().lower():
            raise NotFound(
                f"after {event.name} the state was {event.state_after.hex()}, not {digest[:80]}",
                param="digest",
            )
        tree = EventTree(store)
        note = self.witnessed(store)
        if note is None or checkpoints.read(note).size <= seq:
            note = self.checkpoint(store)
        else:
            require_continuation(store, checkpoints.read(note), tree)
        path = tree.inclusion_proof(seq, checkpoints.read(note).size)
        return Proof(event.header, seq, tuple(path), note)

    def forget_witnessed(self, store: EventStore) -> None:
        """Put the last cosigned checkpoint aside: the key that signed it is lost."""
        file = self._file(origin(store), _WITNESSED)
        with contextlib.suppress(FileNotFoundError):
            file.replace(file.with_name(f"{file.name}-{time.time_ns()}"))

    @property
    def _folder(self) -> Path:
        if self._identity is None:  # made by what was signed first
            self._identity = _identity(self._path)
        elif _identity(self._path) != self._identity:
            raise StorageError(
                f"{self._path} was moved, removed or replaced while it was in use: start again"
            )
        return self._path

    def seed(self) -> bytes:
        """The 32 bytes of the key."""
        return _decoded(self._given) if self._given is not None else _kept(self._folder)

    def _remembered(self, store: EventStore, suffix: str, *, checked: bool) -> Note | None:
        name = origin(store)
        try:
            text = self._file(name, suffix).read_text("utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"the last checkpoint cannot be read: {error}") from error
        note = notes.parse(text)
        if not checked:
            return note
        keys = self.verifier_keys(store)
        for key in keys:
            if any(map(key.made, note.signatures)):
                key.check(note)
                return note
        raise ProofError(
            "the last checkpoint was signed with another key than"
            f" {keys[0].key_id.hex()}: give the one that was used, or where it is lost run"
            " `weightledger rotate-signing-key --lost`"
        )

    def _file(self, name: str, suffix: str = "") -> Path:
        return self._folder / CHECKPOINTS / (sha256(name.encode()).hexdigest()[:32] + suffix)


def consistency(store: EventStore, first: int, second: int | None = None) -> Consistency:
    """That the first `first` events are the beginning of the first `second`, by default of all.

    NotFound when the log has fewer events, or `first` is the larger one.
    """
    size = store.head().seq + 1
    second = size if second is None else second
    if not 0 <= first <= second:
        raise NotFound(f"a log of {first} events is no beginning of one of {second}", param="first")
    if second > size:
        raise NotFound(f"the log has {size} events, not {second}", param="second")
    tree = EventTree(store)
    hashes = tree.consistency_proof(first, second)
    return Consistency(first, second, tree.root(first), tree.root(second), tuple(hashes))


def require_continuation(
    store: EventStore, checkpoint: Checkpoint, tree: EventTree | None = None
) -> None:
    """Raise ProofError unless the log still begins with the events that a checkpoint is over."""
    if checkpoint.origin != origin(store):
        raise ProofError(f"the checkpoint is of {checkpoint.origin}, the log is {origin(store)}")
    size = store.head().seq + 1
    if size < checkpoint.size:
        raise ProofError(
            f"the log has {size} events, and {checkpoint.size} were signed: it was cut off, or is"
            " an older copy"
        )
    root = (tree or EventTree(store)).root(checkpoint.size)
    if root != checkpoint.root:
        raise ProofError(
            f"the first {checkpoint.size} events are not those that were signed: their root was"
            f" {checkpoint.root.hex()} and is {root.hex()}"
        )


def replace_key(folder: Path, seed: bytes) -> None:
    """Sign with another key from now on; the one before is forgotten."""
    durable.replace(folder / KEY_FILE, base64.b64encode(seed).decode() + "\n")


def key_in(file: Path) -> bytes:
    """The key in a file, made when there is none; InvalidRequest for one that others can read."""
    try:
        handle = os.open(file, os.O_RDONLY)
        with os.fdopen(handle, "r", encoding="ascii") as stream:
            if stat.S_IMODE(os.fstat(handle).st_mode) & 0o077:
                raise InvalidRequest(
                    f"{file} can be read by others than its owner: chmod 600 {file}",
                    param="signing_key",
                )
            return _decoded(stream.read().strip())
    except FileNotFoundError:
        return _made(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} cannot be read: {error}", param="signing_key") from None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Around signing: one at a time, of all processes that share a data folder."""
    (folder / CHECKPOINTS).mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder / CHECKPOINTS / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Of a folder, whatever it is called; None where there is none."""
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _kept(folder: Path) -> bytes:
    """The key of a data folder; a new one where none has signed yet."""
    file = folder / KEY_FILE
    signed = folder / CHECKPOINTS
    if not file.exists() and signed.is_dir() and any(one.name != _LOCK for one in signed.iterdir()):
        raise InvalidRequest(
            f"{file} is gone, and has signed checkpoints: bring it back, or where it is lost run"
            " `weightledger rotate-signing-key --lost`",
            param="signing_key",
        )
    return key_in(file)


def _made(file: Path) -> bytes:
    seed = os.urandom(_SEED_BYTES)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.urandom(8).hex()}")
    durable.replace(fresh, base64.b64encode(seed).decode() + "\n")
    try:
        os.link(fresh, file)  # whole from the first moment, and only one of two that make it
    except FileExistsError:
        return key_in(file)
    finally:
        fresh.unlink()
    return seed


def _decoded(text: str) -> bytes:
    seed = notes.decoded(text)
    if seed is None or len(seed) != _SEED_BYTES:
        raise InvalidRequest(
            f"a signing key is the base64 of {_SEED_BYTES} bytes", param="signing_key"
        )
    return seed
