"""A log made of the lines that an export wrote: the same events, seq by seq, in another database.

The lines are checked whole before anything is written: every hash, the order, the texts beside
events, their payloads. So one that was cut, reordered or altered leaves the database as it was. An
import that was interrupted goes on where it came to.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightledger.ledger.audit.exports import FORMAT, needed_alone
from weightledger.ledger.errors import CorruptLedger, InvalidRequest
from weightledger.ledger.events import REDACTED, UPDATED, Annotation, Event, decode
from weightledger.ledger.events.bodies import Redaction, body_of, counted_parameters
from weightledger.ledger.events.canonical import is_canonical
from weightledger.ledger.history.snapshots import read_manifest
from weightledger.ledger.store import EventStore, LedgerStore, payloads
from weightledger.ledger.store.attached import Append, Attached, Snapshot
from weightledger.ledger.tensors.digest import content_digest

_TEXTS = ("actor", "reason", "metadata")
_TOGETHER = 50  # events of one transaction


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import wrote: of `events` in the file, `written` were not there yet."""

    model: str
    events: int
    written: int


def is_log(file: Path) -> bool:
    """Whether a file begins as an exported log does, of this format or another."""
    try:
        with file.open("rb") as lines:
            opening = json.loads(lines.readline(1 << 16))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(opening, dict) and str(opening.get("format")).startswith("weightledger.log.")


def import_log(home: LedgerStore, file: Path) -> Imported:
    """Write an exported log, with payloads, into a ledger that does not have its model.

    InvalidRequest, with nothing written, for a file that is none, is not whole, or is another log
    of a model that is there already.
    """
    opening = _opening(file)
    model, count = opening["model"], opening["events"]
    known: set[bytes] = set()
    missing: set[tuple[int, str]] = set()
    last: Event | None = None
    for number, item in _items(file):
        last, note, _ = _checked(item, number, model, last, known)
        missing |= _missing_texts(last, note)
        missing -= _redacted_texts(last)  # of events before it
    if last is None or last.seq + 1 != count:
        found = 0 if last is None else last.seq + 1
        raise InvalidRequest(f"{file} says it has {count} events, and has {found}: it was cut")
    if missing:
        seq, name = min(missing)
        raise InvalidRequest(
            f"event {seq} of the file: its {name} is missing, and no event says that it went"
        )
    store = home.model(model) if model in home.models() else None
    there = 0 if store is None else _continued(store, file, model)
    waiting: list[Append] = []
    last = None
    for number, item in _items(file):
        append = _checked(item, number, model, last)
        last = append[0]
        if last.seq < there:
            continue
        if store is None:
            store = home.register(append)
            continue
        waiting.append(append)
        if len(waiting) == _TOGETHER or last.seq + 1 == count:
            store.append(*waiting)
            waiting.clear()
    return Imported(model, count, count - there)


def _continued(store: EventStore, file: Path, model: str) -> int:
    """How many events of the file a log has already; InvalidRequest when it is another log."""
    head = store.head()
    for number, item in _items(file):
        if number == head.seq and item["header"].encode() == head.header:
            return head.seq + 1
    raise InvalidRequest(f"the ledger has another log of {model!r}: choose an empty database")


def _opening(file: Path) -> Mapping[str, Any]:
    try:
        with file.open(encoding="utf-8") as lines:
            opening = json.loads(next(lines))
        if opening["format"] != FORMAT:
            raise InvalidRequest(
                f"{file} has the format {opening['format']!r}, expected {FORMAT!r}: it was written"
                " by a newer release"
            )
        if not opening.get("payloads"):
            raise InvalidRequest(
                f"{file} has no payloads, so no state could be restored from it: export it with"
                " `weightledger export --payloads`"
            )
        fields = {"model": str(opening["model"]), "events": int(opening["events"])}
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error}") from None
    except (StopIteration, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(f"{file} is no exported log: {error!r}") from None
    return fields


def _items(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The events' lines of a file with their seqs."""
    try:
        with file.open(encoding="utf-8") as lines:
            next(lines)
            for number, line in enumerate(lines):
                item = json.loads(line)
                if not isinstance(item, dict) or not isinstance(item.get("header"), str):
                    raise InvalidRequest(f"line {number + 2} of {file} is no event")
                yield number, item
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error}") from None
    except json.JSONDecodeError:
        raise InvalidRequest(f"a line of {file} is not whole: it was cut") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file} is not UTF-8: {error}") from None


def _checked(
    item: Mapping[str, Any],
    seq: int,
    model: str,
    last: Event | None,
    known: set[bytes] | None = None,
) -> Append:
    """The event of a line that follows `last`, as it is appended.

    `known` are the blobs of earlier lines, to which this one's are added; None to take it on trust
    that none is missing.
    """
    try:
        event = decode(item["header"].encode())
        _require(event.seq == seq, f"event {seq} is missing, event {event.seq} follows")
        _require(event.model == model, f"it is of the model {event.model!r}, not of {model!r}")
        _require(event.prev == (last.hash if last else None), "it does not follow the one before")
        same = last is None or event.state_before == last.state_after
        _require(same, "it begins at another state than the one before ends with")
        _require(is_canonical(event.header), "its header is not canonical")
        note = _annotation(item, event)
        blobs = {bytes.fromhex(name): _bytes(text) for name, text in item.get("blobs", {}).items()}
        for digest, data in blobs.items():
            _require(content_digest(data) == digest, f"blob {digest.hex()} has other bytes")
        snapshot = _snapshot(item, event, blobs)
        payload = _payload(item, event)
        if known is not None:
            known.update(blobs)
            needed = set(event.blobs)
            if snapshot is not None and snapshot.manifest in blobs:
                needed.update(read_manifest(blobs[snapshot.manifest]).digests.values())
            _require(known >= needed, "a blob that it needs is missing")
    except (CorruptLedger, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidRequest(f"event {seq} of the file: {error}") from None
    return event, note, Attached(_parameters(event, snapshot, blobs), payload, blobs, snapshot)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CorruptLedger(otherwise)


def _annotation(item: Mapping[str, Any], event: Event) -> Annotation:
    texts = {name: item.get(name) for name in _TEXTS}
    salt = bytes.fromhex(item["salt"]) if "salt" in item else bytes(16)
    note = Annotation(**texts, salt=salt)
    for name, text in texts.items():
        recorded = getattr(event, f"{name}_digest")
        _require(text is None or note.digest(name) == recorded, f"its {name} was altered")
    return note


def _missing_texts(event: Event, note: Annotation) -> set[tuple[int, str]]:
    """The texts that an event's header has digests of and that are not beside it."""
    return {
        (event.seq, name)
        for name in _TEXTS
        if getattr(note, name) is None and getattr(event, f"{name}_digest") is not None
    }


def _redacted_texts(event: Event) -> set[tuple[int, str]]:
    """The texts that were taken away as an event says."""
    if event.kind != REDACTED:
        return set()
    try:
        redaction = body_of(event, Redaction)
    except CorruptLedger as error:
        raise InvalidRequest(f"event {event.seq} of the file: {error}") from None
    return {(seq, name) for seq in redaction.events for name in redaction.texts}


def _payload(item: Mapping[str, Any], event: Event) -> bytes | None:
    """The bytes of the event's own row; None where it has none, or where they are in blobs."""
    if not event.payload or needed_alone(event):
        return None
    return payloads.checked(event, _bytes(item["payload"]))


def _snapshot(
    item: Mapping[str, Any], event: Event, blobs: Mapping[bytes, bytes]
) -> Snapshot | None:
    said = item.get("snapshot")
    if said is None:
        _require(event.seq > 0, "the first state is missing")
        return None
    manifest = bytes.fromhex(said["manifest"])
    _require(event.seq > 0 or manifest in blobs, "the manifest of the first state is missing")
    if manifest in blobs:
        same = read_manifest(blobs[manifest]).value == event.state_after
        _require(same, "its snapshot is of another state")
    return Snapshot(event.node, manifest, int(said["size"]))


def _parameters(event: Event, snapshot: Snapshot | None, blobs: Mapping[bytes, bytes]) -> list[str]:
    """The names that the event counts for; of the first all that the model has."""
    if event.seq == 0:
        assert snapshot is not None
        return list(read_manifest(blobs[snapshot.manifest]).specs)
    return counted_parameters(event.body) if event.kind == UPDATED else []


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise CorruptLedger(f"it has no base64 where bytes are: {error}") from None
