"""A page of the chain, checked by its columns: what each header has to say, written and compared.

A header is written anew from its row, the row before it, the running totals and the few facts that
it alone has. Canonical JSON is one sequence of bytes for what it says, so where the header equals
what was written, every field of both is right. Working on columns takes less time than one event
after the other. What is unusual, and what differs, is for who checks one event
field by field (`ledger.audit.chain`), which finds the words for what is wrong.
"""

import re
from binascii import hexlify
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, repeat
from operator import eq
from typing import Any

import msgspec
import orjson

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import (
    FORMAT,
    LEAF_PREFIX,
    ROLLED_BACK,
    STATE_CHANGING,
    UPDATED,
    UPDATES,
    VERSIONS,
    Event,
)
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.events.changes import FACTORS
from weightledger.ledger.store import Note, RawEvent
from weightledger.ledger.store.facts import Facts

UNREADABLE = (TypeError, ValueError, AttributeError, OverflowError)
"""What a value of another type than its column's leads to, and a header that is none."""

_FACTORS = f'"form":"{FACTORS[:-2]}'.encode()  # of any revision; a search for this end is quick

_SILENT: Note = (0, None, None, None, b"")

# The names in the order of RFC 8785; those that may be missing are written with their comma.
_HEADER = (
    b'{%b%b"body":%b,"counts":{"applied":%d,"updates":%d,"versions":%d},"format":'
    + str(FORMAT).encode()
    + b',%b"kind":%b,%b"model":%b,"node":%d,%b%b"payload":%b,%b%b"recorded_at":%d,%b%b%b"seq":%d,'
    b'%b"state_after":"%b",%b"state_seq":%d}'
)

# A payload of one piece, which nearly all have, or none.
_payload = re.compile(rb'\[(?:\{"digest":"[0-9a-f]{64}","size":(0|[1-9][0-9]*)\})?\]').fullmatch
_digest = re.compile(r"[0-9a-f]{64}").fullmatch
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ChainPosition:
    """Where the log stands after an event: what the next one has to continue. Digests are hex."""

    seq: int = -1
    hash: str | None = None
    state: str | None = None
    recorded_at: int = 0
    node: int | None = None
    state_seq: int | None = None
    applied: int = 0
    updates: int = 0
    versions: int = 0

    @classmethod
    def after(cls, event: Event) -> "ChainPosition":
        """Behind an event."""
        counts = event.counts
        return cls(
            *(event.seq, event.hash.hex(), event.state_after.hex(), event.recorded_at, event.node),
            *(event.state_seq, counts.applied, counts.updates, counts.versions),
        )


class _Own(msgspec.Struct, gc=False):
    """What neither the row of an event nor the events before it say."""

    body: msgspec.Raw
    payload: msgspec.Raw
    active: int | None = None
    request_digest: str | None = None
    request_id: str | None = None
    schema: int | None = None


_own = msgspec.json.Decoder(_Own).decode


class ChainPage:
    """Rows as columns, behind `place`.

    Raises one of UNREADABLE where they cannot be, or a header does not have its hash.
    """

    def __init__(
        self, rows: Sequence[RawEvent], notes: Mapping[int, Note], place: ChainPosition
    ) -> None:
        leaves = [sha256(LEAF_PREFIX + row[-2]).digest() for row in rows]
        if leaves != [row[-1] for row in rows]:
            raise ValueError("a header does not have its hash")
        columns: Any = Facts._make(zip(*rows, strict=True))
        self.seqs, self.kinds, self.times = columns.seq, columns.kind, columns.recorded_at
        self.nodes, self.parents, self.changes = columns.node, columns.parent, columns.changes_state
        self.forward_only, self.keys = columns.forward_only, columns.idempotency_key
        self.series, self.numbers, self.sizes = columns.series, columns.number, columns.payload_size
        self.states, self.headers = columns.state_after, columns.header
        self.hashes = columns.event_hash
        self.notes = [notes.get(seq, _SILENT) for seq in self.seqs]
        self.start = place
        self.moves = [kind in STATE_CHANGING for kind in self.kinds]
        # As they stand before each event, and after the last.
        self.hexes = [_ascii(place.hash), *map(hexlify, self.hashes)]
        self.state_hexes = [_ascii(place.state), *map(hexlify, self.states)]
        self.applied = _totals(place.applied, [kind == UPDATED for kind in self.kinds])
        self.updates = _totals(place.updates, [one == UPDATES for one in self.series])
        self.versions = _totals(place.versions, [one == VERSIONS for one in self.series])
        moved = zip(self.seqs, self.moves, strict=True)
        last = -1 if place.state_seq is None else place.state_seq
        self.state_seqs = list(
            accumulate([seq if moves else -1 for seq, moves in moved], max, initial=last)
        )

    def place(self, at: int) -> ChainPosition:
        """Where the log stands before the event `at`, if those before it are sound."""
        if at == 0:
            return self.start
        return ChainPosition(
            self.seqs[at - 1],
            self.hexes[at].decode(),
            self.state_hexes[at].decode(),
            self.times[at - 1],
            self.nodes[at - 1],
            self.state_seqs[at],
            self.applied[at],
            self.updates[at],
            self.versions[at],
        )

    def sound(self, model: str) -> list[bool]:
        """Which events are what the rows come to, byte for byte; a model's first never is."""
        own = [_own(header) for header in self.headers]
        checks = zip(self._written(model, own), self._in_place(), self._plain(own), strict=True)
        return [
            written == header and in_place and plain
            for header, (written, in_place, plain) in zip(self.headers, checks, strict=True)
        ]

    def _in_place(self) -> Iterable[bool]:
        """Whether each row says what it must, behind the row before it."""
        first = self.start.seq + 1
        expected = [
            (seq, node if kind == ROLLED_BACK else seq, node_before, True, state, number)
            if moves
            else (seq, node_before, None, False, state_before, number)
            for seq, kind, node, node_before, moves, state, state_before, number in zip(
                *(range(first, first + len(self.seqs)), self.kinds, self.nodes),
                *([self.start.node, *self.nodes[:-1]], self.moves, self.state_hexes[1:]),
                *(self.state_hexes[:-1], self._numbers()),
                strict=True,
            )
        ]
        rows = zip(
            *(self.seqs, self.nodes, self.parents, self.changes, self.state_hexes[1:]),
            self.numbers,
            strict=True,
        )
        times = [self.start.recorded_at, *self.times]
        if set(map(type, self.times)) != {int} or sorted(times) != times:
            return [False] * len(expected)
        return map(eq, rows, expected)

    def _numbers(self) -> Iterable[int | None]:
        """The number of each event in its series; what only the header says is taken as it is."""
        return [
            updates if series == UPDATES else versions if series == VERSIONS else number
            for series, updates, versions, number in zip(
                self.series, self.updates[1:], self.versions[:-1], self.numbers, strict=True
            )
        ]

    def _plain(self, own: Sequence[_Own]) -> Iterable[bool]:
        """Whether what only the header says can be, and the row repeats it."""
        for header in self.headers:
            if not header.isascii():
                header.decode()  # what the decoder passes over is text as well
        return [
            forward_only == 0
            and (payload := _payload(one.payload)) is not None
            and int(payload[1] or 0) == size
            and (one.request_digest is None or _digest(one.request_digest) is not None)
            and _FACTORS not in (body := bytes(one.body))
            and (kind == UPDATED or is_canonical(body))
            for one, kind, size, forward_only in zip(
                own, self.kinds, self.sizes, self.forward_only, strict=True
            )
        ]

    def _written(self, model: str, own: Sequence[_Own]) -> Iterable[bytes]:
        """Each header as it has to be."""
        names = {name: _encode(name) for name in {*self.kinds, *self.series}}
        return map(
            _HEADER.__mod__,
            zip(
                _numbered(b"active", [one.active for one in own]),
                self._digests(b"actor", [note[1] for note in self.notes]),
                [one.body for one in own],
                *(self.applied[1:], self.updates[1:], self.versions[1:]),
                _texts(b"idempotency_key", self.keys),
                [names[kind] for kind in self.kinds],
                self._digests(b"metadata", [note[3] for note in self.notes]),
                repeat(canonical(model)),
                self.nodes,
                _numbered(b"number", self.numbers),
                _numbered(b"parent", self.parents),
                [one.payload for one in own],
                _hexes(b"prev", self.hexes),
                self._digests(b"reason", [note[2] for note in self.notes]),
                self.times,
                _texts(b"request_digest", [one.request_digest for one in own]),
                _texts(b"request_id", [one.request_id for one in own]),
                _numbered(b"schema", [one.schema for one in own]),
                self.seqs,
                [b"" if one is None else b'"series":%b,' % names[one] for one in self.series],
                self.state_hexes[1:],
                _hexes(b"state_before", self.state_hexes),
                self.state_seqs[1:],
            ),
        )

    def _digests(self, name: bytes, values: Sequence[str | None]) -> list[bytes]:
        """What a header says of a text beside it; see `events.annotation_digest`."""
        text, written = b"%b" + name + b"\0%b", b'"' + name + b'":"%b",'
        return [
            b""
            if value is None
            else written % hexlify(sha256(text % (note[4], value.encode())).digest())
            for note, value in zip(self.notes, values, strict=True)
        ]


def is_canonical(text: bytes) -> bool:
    """Whether a reader of another make reads the same: the one way to write this JSON."""
    try:
        return canonical(orjson.loads(text)) == text
    except InvalidRequest:
        return False


def _totals(before: int, counted: Iterable[bool]) -> list[int]:
    return list(accumulate(counted, initial=before))


def _ascii(text: str | None) -> bytes:
    return (text or "").encode()


def _numbered(name: bytes, values: Iterable[int | None]) -> list[bytes]:
    field = b'"' + name + b'":%d,'
    return [b"" if value is None else field % value for value in values]


def _texts(name: bytes, values: Iterable[str | None]) -> list[bytes]:
    field = b'"' + name + b'":%b,'
    return [b"" if value is None else field % _encode(value) for value in values]


def _hexes(name: bytes, values: Sequence[bytes]) -> Iterable[bytes]:
    """Of the event before; of a model's first there is none."""
    return map((b'"' + name + b'":"%b",').__mod__, values[:-1])
