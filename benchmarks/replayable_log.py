"""A log of any length whose every state can be rebuilt, made in bulk.

A tiny model goes round: each update flips one of four matrices between two values, so eight real
updates, taken from a real ledger, follow each other for ever, with their payloads and digests. As
a server would, it names and snapshots a state every hundred updates, keeps ten names listed beside
the first, and now and then rolls back. Headers of updates are made from a template; the first are
compared byte for byte with `events.event.seal`, and `benchmarks.history_length` verifies a log bit
by bit. `Told` has people in it too, who say why, and refusals, over as many days as one likes.
"""

import json
import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks import bulk
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.events import (
    THIS_VERSION,
    UPDATED,
    UPDATES,
    VERSION_CREATED,
    Annotation,
    Counts,
    Draft,
    Event,
    decode,
    leaf_hash,
    seal,
)
from weightledger.ledger.events.bodies import (
    NamedState,
    RolledBack,
    Updated,
    UpdateRejected,
    VersionCreated,
    VersionRetired,
    body_of,
)
from weightledger.ledger.history import snapshots
from weightledger.ledger.history.snapshot_tensors import store_tensors
from weightledger.ledger.sql.layout import SEQ_BITS
from weightledger.ledger.store import EventFilter, rows
from weightledger.ledger.store.attached import Snapshot

MODEL = "tiny"
NAMES = ("a", "b", "c", "d")
CHECKED = 500
NAMED_EVERY = 100  # updates, as `checkpoint_interval`
LISTED = 10  # as `max_versions`
ROLLED_BACK_EVERY = 1000
SIDE = 16

_CYCLE = 2 * len(NAMES)
_STEP = 250  # microseconds from event to event

REFUSED_EVERY = 400
RUN = 5000  # updates of one run, which the metadata name
PEOPLE = [("trainer", 0.7), ("tuner", 0.2), ("anna", 0.06), ("bo", 0.039), ("cy", 0.001)]
REASONS = [(None, 0.4), ("optimizer step", 0.5), ("nightly fine-tuning run", 0.0999)]
RARE_REASON = "rolled out by hand after the incident"


@dataclass(frozen=True)
class Told:
    """A log that has texts: it ends now, and took so many days."""

    days: float = 30.0


@cache
def _digests(note: Annotation) -> tuple[str, str, str]:
    """The three texts' digests as they stand in a header, each with its comma."""
    actor, metadata, reason = (
        "" if (digest := note.digest(name)) is None else f'"{name}":"{digest}",'
        for name in ("actor", "metadata", "reason")
    )
    return actor, metadata, reason


def _notes(count: int) -> Iterator[Annotation]:
    """Who did each event of a log, and why: the same people for a while."""
    chance = random.Random(7)
    people, shares = zip(*PEOPLE, strict=True)
    reasons, reason_shares = zip(*[*REASONS, (RARE_REASON, 0.0001)], strict=True)
    salt, actor, reason = bytes(16), people[0], reasons[0]
    for number in range(count):
        if chance.random() < 0.05:
            (actor,) = chance.choices(people, shares)
            (reason,) = chance.choices(reasons, reason_shares)
        yield Annotation(actor, reason, f'{{"run":{number // RUN}}}', salt)


def matrices() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The two values of each tensor."""
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randn(len(NAMES), 2, SIDE, SIDE, generator=generator)
    return {name: (drawn[n, 0].clone(), drawn[n, 1].clone()) for n, name in enumerate(NAMES)}


def base() -> dict[str, torch.Tensor]:
    """The weights the model is registered with."""
    return {name: first for name, (first, _) in matrices().items()}


def update(number: int) -> IncrementalUpdateRequest:
    """Update `number`, from 1, of the round."""
    name = NAMES[(number - 1) % len(NAMES)]
    value = matrices()[name][number % _CYCLE in range(1, len(NAMES) + 1)]
    return IncrementalUpdateRequest(name, value, update_type="replace")


@dataclass(frozen=True)
class Turn:
    """One of the eight updates as a real ledger made it, and the state it leads to."""

    event: Event
    payload: bytes
    anchor: Snapshot


def load(
    url: str, count: int, scratch: Path, *, listed: int = LISTED, told: Told | None = None
) -> None:
    """Fill an empty database with a log of `count` events of one model.

    Besides the first version `listed` stay on the list. `scratch` is a folder for its own use.
    """
    now_us = time.time_ns() // 1000
    lasted_us = _STEP * count if told is None else int(told.days * 86_400_000_000)
    began_us = now_us if told is None else now_us - lasted_us
    with (
        patch("weightledger.ledger.opening.time.time_ns", return_value=1000 * began_us),
        Ledger.open(url) as ledger,
        Ledger.open(f"sqlite:///{scratch / 'round.db'}") as round_ledger,
    ):
        log = ledger.model(MODEL, base=base())
        first = log.history.require(0)
        around = round_ledger.model(MODEL, base=base())
        turns = []
        for number in range(1, _CYCLE + 1):
            event = around.apply(update(number))
            state, tensor = around.live.state, around.projector.tensor
            store_tensors(ledger.store.blobs, state, tensor)
            anchor, _ = snapshots.describe(0, state)
            turns.append(Turn(event, around.history.store.payload(event), anchor))
        assert turns[-1].event.state_after == first.state_after
    notes = iter(()) if told is None else _notes(count)
    bulk.write(url, _events(first, turns, count, listed, lasted_us // count, notes))
    with Ledger.open(url) as ledger:  # who appends one by one writes the search's blocks as well
        ledger.model(MODEL).history.events(EventFilter(text="nothing"), limit=1)


def _events(
    first: Event,
    turns: list[Turn],
    count: int,
    listed: int,
    step_us: int,
    notes: Iterator[Annotation],
) -> Iterator[bulk.Parts]:
    """The rows of every event after the first."""
    made = _Round(first, turns, step_us, notes)
    yield made.rare(_naming(first, "as registered"))
    while made.seq + 1 < count:
        updates = made.counts.updates
        if made.seq % ROLLED_BACK_EVERY == ROLLED_BACK_EVERY // 2 + NAMED_EVERY // 2:
            yield made.back()
        elif made.told and made.seq % REFUSED_EVERY == REFUSED_EVERY // 3:
            refused = UpdateRejected({"parameter": "a"}, "2.3 % worse on held-out data")
            yield made.rare(Draft(refused, decode(made.header).state_after))
        else:
            yield made.updated()
            if (updates + 1) % NAMED_EVERY == 0 and made.seq + 3 < count:
                yield made.rare(_naming(decode(made.header), "checkpoint"), snapshot=True)
                if len(made.listed) > 1 + listed:
                    yield made.rare(made.retirement())
    yield [
        (bulk.LISTED, (1, number, made.key(seq), node, 0)) for number, seq, node, _ in made.listed
    ]


def _naming(named: Event, description: str) -> Draft:
    names = NamedState(named.state_seq, named.node, named.state_after)
    body = VersionCreated(description, names)
    return Draft(body, named.state_after, active=THIS_VERSION)


class _Round:
    """Where the log stands, and the rows of the event that comes next."""

    def __init__(
        self, first: Event, turns: list[Turn], step_us: int, notes: Iterator[Annotation]
    ) -> None:
        self._step_us, self._notes = step_us, notes
        self._note = next(notes, Annotation())
        self.told = bool(self._note)
        self.seq, self.header, self.hash = 0, first.header, first.hash
        self.counts, self.active, self.at = Counts(), first.active, first.recorded_at
        self.nodes = deque([0], maxlen=2 * _CYCLE)  # of this branch, the newest last
        self.state_seq = 0
        self.listed: deque[tuple[int, int, int, str]] = deque()
        self._turns, self._touched = turns, [0] * len(NAMES)
        self._parts = [self._constant(turn) for turn in turns]

    def key(self, seq: int) -> int:
        return (1 << SEQ_BITS) | seq

    def updated(self) -> bulk.Parts:
        """The next update of the round."""
        number = self.counts.applied % _CYCLE
        turn = self._turns[number]
        body, pieces, request, schema, after, before = self._parts[number]
        seq, parent, counts = self.seq + 1, self.nodes[-1], self.counts
        counts = Counts(
            applied=counts.applied + 1, updates=counts.updates + 1, versions=counts.versions
        )
        at = self.at + self._step_us
        note = self._note
        actor, metadata, reason = _digests(note) if self.told else ("", "", "")
        active = f'"active":{self.active},' if self.active is not None else ""
        header = (
            f'{{{active}{actor}"body":{body},"counts":{{"applied":{counts.applied},'
            f'"updates":{counts.updates},"versions":{counts.versions}}},"format":1,'
            f'"kind":"updated",{metadata}"model":"{MODEL}","node":{seq},"number":{counts.updates},'
            f'"parent":{parent},"payload":{pieces},"prev":"{self.hash.hex()}",{reason}"recorded_at":{at},'
            f'"request_digest":"{request}","schema":{schema},"seq":{seq},"series":"updates",'
            f'"state_after":"{after}","state_before":"{before}","state_seq":{seq}}}'
        ).encode()
        if seq < CHECKED:
            was = turn.event
            draft = Draft(body_of(was, Updated), was.state_after, payload=was.payload)
            digest = was.request_digest
            sealed = seal(
                draft, MODEL, decode(self.header), at, annotation=note, request_digest=digest
            )
            assert sealed.header == header, (sealed.header, header)
        self.seq, self.header, self.hash, self.at = seq, header, leaf_hash(header), at
        self.counts, self.state_seq = counts, seq
        self.nodes.append(seq)
        key, one = self.key(seq), number % len(NAMES)
        self._touched[one] += 1
        row = (key, 1, UPDATED, at, seq, parent, 1, 0, UPDATES, counts.updates, None)
        values = (turn.event.state_after, len(turn.payload), header, self.hash, turn.payload)
        return [
            (bulk.EVENTS_WITH_PAYLOAD, (*row, *values)),
            (bulk.TOUCHES, (one + 1, key, self._touched[one], note.actor)),
            *self._annotated(key, UPDATED),
        ]

    def _annotated(self, key: int, kind: str) -> list[tuple[str, tuple[object, ...]]]:
        """The row of the texts of the event that was just made; the next one's are at hand."""
        note, self._note = self._note, next(self._notes, Annotation())
        if not note:
            return []
        row = (key, kind, note.actor, note.reason, note.metadata, note.salt)
        return [(bulk.ANNOTATIONS, row)]

    def back(self) -> bulk.Parts:
        """A rollback of one round, after which the state is the same and the branch another."""
        for _ in range(_CYCLE):
            self.nodes.pop()
        node = self.nodes[-1]
        body = RolledBack(f"seq:{node}", node, node, self.state_seq, None, "manual")
        state = decode(self.header).state_after
        return self.rare(Draft(body, state, target_node=node))

    def rare(self, draft: Draft, *, snapshot: bool = False) -> bulk.Parts:
        """Any other event, sealed as the ledger does it."""
        now = self.at + self._step_us
        event = seal(draft, MODEL, decode(self.header), now, annotation=self._note)
        self.seq, self.header, self.hash = event.seq, event.header, event.hash
        self.counts, self.active, self.at = event.counts, event.active, event.recorded_at
        self.state_seq = event.state_seq
        if event.kind == VERSION_CREATED:
            assert event.number is not None
            self.listed.append((event.number, event.seq, event.node, event.name))
        parts: list[tuple[str, tuple[object, ...]]] = [
            (bulk.EVENTS_WITH_PAYLOAD, (*rows.to_row(1, event), None)),
            *self._annotated(self.key(event.seq), event.kind),
        ]
        if snapshot:
            turn = self._turns[(self.counts.applied - 1) % _CYCLE]
            anchor = replace(turn.anchor, node=event.node)
            parts.append((bulk.SNAPSHOTS, (1, anchor.node, anchor.manifest, anchor.size)))
        return parts

    def retirement(self) -> Draft:
        """Takes the oldest name off the list, but for the first."""
        number, _, _, name = self.listed[1]
        del self.listed[1]
        return Draft(
            VersionRetired(name),
            decode(self.header).state_after,
            number=number,
        )

    def _constant(self, turn: Turn) -> tuple[str, str, str, int, str, str]:
        """What is the same whenever this update comes round, as it stands in a header."""
        fields = json.loads(turn.event.header)
        body, pieces = (
            json.dumps(fields[name], sort_keys=True, separators=(",", ":"))
            for name in ("body", "payload")
        )
        digests = ("request_digest", "state_after", "state_before")
        request, after, before = (fields[name] for name in digests)
        return body, pieces, request, fields["schema"], after, before
