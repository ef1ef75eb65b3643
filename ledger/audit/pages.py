"""A page of the chain, checked by its columns: what each header says beside what it has to say.

What a header has to say follows from its row, the row before it, the running totals and the texts
beside it. Its fields are in the order of canonical JSON, so where msgspec writes what it read as
the same bytes, nothing in it was left out of the comparison. Working on columns takes less time
than one event after the other. What is unusual, and what differs, is for who checks one event
field by field (`ledger.audit.chain`), which finds the words for what is wrong.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate, repeat
from operator import attrgetter, contains, eq
from typing import Any

import msgspec

from weightledger.ledger.events import (
    FORMAT,
    LEAF_PREFIX,
    ROLLED_BACK,
    STATE_CHANGING,
    UPDATED,
    UPDATES,
    VERSIONS,
    Counts,
    Event,
    EventHeader,
)
from weightledger.ledger.events.canonical import is_canonical
from weightledger.ledger.events.changes import FACTORS
from weightledger.ledger.store import RawEvent
from weightledger.ledger.store.facts import Facts

UNREADABLE = (TypeError, ValueError, AttributeError, OverflowError)
"""What a value of another type than its column's leads to, and a header that is none."""

_FORM_OF_FACTORS = f'"form":"{FACTORS}"'.encode()
_DIGEST_LETTERS = 64

_read = msgspec.json.Decoder(EventHeader).decode_lines
_write = msgspec.json.Encoder().encode_lines

_says = attrgetter(
    *("format", "model", "seq", "kind", "recorded_at", "node", "parent", "series", "number"),
    *("idempotency_key", "counts", "prev", "state_before", "state_after", "state_seq"),
    *("actor", "reason", "metadata"),
)


@dataclass(frozen=True, slots=True)
class ChainPosition:
    """Where the log stands after an event: what the next one has to continue. Digests are hex."""

    seq: int = -1
    hash: str | None = None
    state: str | None = None
    recorded_at: int = 0
    node: int | None = None
    state_seq: int | None = None
    counts: Counts = field(default_factory=Counts)

    @classmethod
    def after(cls, event: Event) -> "ChainPosition":
        """Behind an event."""
        return cls(
            *(event.seq, event.hash.hex(), event.state_after.hex(), event.recorded_at, event.node),
            *(event.state_seq, event.counts),
        )


class ChainPage:
    """Rows as columns, behind `place`.

    Raises one of UNREADABLE where they cannot be, or a header does not have its hash.
    """

    def __init__(self, rows: Sequence[RawEvent], place: ChainPosition) -> None:
        columns = list(zip(*rows, strict=True))
        facts: Any = Facts._make(columns[: len(Facts._fields)])
        leaves = [sha256(LEAF_PREFIX + header).digest() for header in facts.header]
        if leaves != list(facts.event_hash):
            raise ValueError("a header does not have its hash")
        self.start, self.facts = place, facts
        self.actors, self.reasons, self.metadata, self.salts = columns[len(Facts._fields) :]
        self.seqs = range(place.seq + 1, place.seq + 1 + len(rows))
        self.moves = [kind in STATE_CHANGING for kind in facts.kind]
        # As they stand before each event, and after the last.
        self.hashes = [place.hash, *[one.hex() for one in leaves]]
        self.states = [place.state, *[one.hex() for one in facts.state_after]]
        self.nodes = [place.node, *facts.node]
        self.times = [place.recorded_at, *facts.recorded_at]
        self.counts = list(
            map(
                Counts,
                _totals(place.counts.applied, [kind == UPDATED for kind in facts.kind]),
                _totals(place.counts.updates, [one == UPDATES for one in facts.series]),
                _totals(place.counts.versions, [one == VERSIONS for one in facts.series]),
            )
        )
        moved = [seq if moves else -1 for seq, moves in zip(self.seqs, self.moves, strict=True)]
        last = -1 if place.state_seq is None else place.state_seq
        self.state_seqs = list(accumulate(moved, max, initial=last))

    def place(self, at: int) -> ChainPosition:
        """Where the log stands before the event `at`, if those before it are sound."""
        if at == 0:
            return self.start
        return ChainPosition(
            *(self.seqs[at - 1], self.hashes[at], self.states[at], self.times[at], self.nodes[at]),
            *(self.state_seqs[at], self.counts[at]),
        )

    def sound(self, model: str) -> list[bool]:
        """Which events are what the rows come to, byte for byte."""
        headers = self.facts.header
        text = b"\n".join(headers)
        if any(map(contains, headers, repeat(b"\n"))):
            raise ValueError("a header has lines")  # which could be taken for headers
        if not text.isascii():
            text.decode()  # what the decoder passes over is text as well
        said = _read(text)
        written = _write(said)
        lines = headers if written == text + b"\n" else written.split(b"\n")[:-1]
        checks = zip(
            map(eq, headers, lines),
            map(eq, map(_says, said), self._expected(model)),
            self._in_place(),
            self._plain(said, text),
            strict=True,
        )
        return [
            whole and expected and in_place and plain for whole, expected, in_place, plain in checks
        ]

    def _expected(self, model: str) -> Iterable[tuple[Any, ...]]:
        """What each header has to say, as `_says` gives it."""
        facts, count = self.facts, len(self.seqs)
        return zip(
            *(
                [FORMAT] * count,
                [model] * count,
                self.seqs,
                facts.kind,
                facts.recorded_at,
                facts.node,
            ),
            *(facts.parent, facts.series, facts.number, facts.idempotency_key, self.counts[1:]),
            *(self.hashes[:-1], self.states[:-1], self.states[1:], self.state_seqs[1:]),
            self._digests(b"actor\0", self.actors),
            self._digests(b"reason\0", self.reasons),
            self._digests(b"metadata\0", self.metadata),
            strict=True,
        )

    def _digests(self, name: bytes, texts: Sequence[str | None]) -> list[str | None]:
        """What a header says of a text beside it; see `events.annotation_digest`."""
        return [
            None if text is None else sha256(salt + name + text.encode()).hexdigest()
            for salt, text in zip(self.salts, texts, strict=True)
        ]

    def _in_place(self) -> Iterable[bool]:
        """Whether each row says what it must, behind the row before it."""
        facts, moves = self.facts, self.moves
        steps = zip(self.seqs, facts.kind, moves, facts.node, self.nodes[:-1], strict=True)
        nodes = [
            before if not moved else node if kind == ROLLED_BACK else seq
            for seq, kind, moved, node, before in steps
        ]
        parents = [
            before if moved else None for moved, before in zip(moves, self.nodes[:-1], strict=True)
        ]
        numbers = [  # what only the header says is taken as it is
            after.updates
            if series == UPDATES
            else before.versions
            if series == VERSIONS
            else number
            for series, before, after, number in zip(
                facts.series, self.counts[:-1], self.counts[1:], facts.number, strict=True
            )
        ]
        return map(
            eq,
            zip(
                facts.seq, facts.node, facts.parent, facts.changes_state, facts.number, strict=True
            ),
            zip(self.seqs, nodes, parents, moves, numbers, strict=True),
        )

    def _plain(self, said: Sequence[EventHeader], text: bytes) -> Iterable[bool]:
        """Whether what only the header says can be, and the row repeats it."""
        facts = self.facts
        if sorted(self.times) != self.times:
            raise ValueError("an event was recorded before the one before it")
        _require_digests([piece.digest for one in said for piece in one.payload])
        _require_digests([one.request_digest for one in said if one.request_digest is not None])
        sizes = [
            one.payload[0].size
            if len(one.payload) == 1
            else sum(piece.size for piece in one.payload)
            for one in said
        ]
        if _FORM_OF_FACTORS in text:  # of all of them at once, since it is nearly never there
            usual = [_FORM_OF_FACTORS not in header for header in facts.header]
        else:
            usual = [True] * len(said)
        return [
            forward_only == 0
            and size_there == size
            and usual_form
            and (kind == UPDATED or is_canonical(bytes(one.body)))
            for one, kind, forward_only, size_there, size, usual_form in zip(
                said, facts.kind, facts.forward_only, facts.payload_size, sizes, usual, strict=True
            )
        ]


def _require_digests(digests: Sequence[str]) -> None:
    letters = "".join(digests)
    if {*map(len, digests)} - {_DIGEST_LETTERS} or bytes.fromhex(letters).hex() != letters:
        raise ValueError("a digest is none")


def _totals(before: int, counted: Iterable[bool]) -> Iterable[int]:
    return accumulate(counted, initial=before)
