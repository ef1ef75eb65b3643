"""The usual way forward: other writers went straight on from what is live.

Then one query reads all that is new, and each delta is applied to a copy of what it changes. This
is what a process pays for every event of the others, so it plans nothing and hands nothing to other
threads; whatever is not a straight line of small events goes the general way (`Projector.move`).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from weightledger.ledger.errors import CorruptLedger, InvalidRequest
from weightledger.ledger.events import STATE_CHANGING, Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.rebuilding import Fetch
from weightledger.ledger.history.replay import Move, RebuiltTensors, Sources, replay
from weightledger.ledger.history.small_replay import replay_small
from weightledger.ledger.sql.groups import ToldTensor
from weightledger.ledger.store.payloads import Portion
from weightledger.ledger.tensors.digest import chunk_digests, root
from weightledger.ledger.tensors.lanes import from_bytes
from weightledger.ledger.tensors.state import StateDigest

MOST_NEWS = 64
"""Events that are looked at; where there are more, planning costs little beside them."""

News = Sequence[tuple[Event, bytes | None]]
"""Events behind the last one shown, in order, each with its payload where that is inline."""


class Ahead(NamedTuple):
    """The log's last event, what the way there changes, if it does, and the events on it."""

    head: Event
    rebuilt: RebuiltTensors | None
    events: Sequence[Event]


def straight_on(
    history: History,
    head: Event,
    state: StateDigest,
    tensor: Fetch,
    news: News | None = None,
) -> Ahead | None:
    """The way from `head` to the log's last event, verified.

    `state` is the one after `head`, and `tensor` gives copies of its tensors. Nothing is rebuilt
    where no event changes the state. None where there is no such way, or what is on it is damaged.
    """
    try:
        if news is None:
            news = history.store.news(head.seq, MOST_NEWS)
        if not news or len(news) == MOST_NEWS or not _is_line(head, news):
            return None
        events = [event for event, _ in news]
        for event in events:
            history.learn(event)
        changing = [one for one in news if one[0].kind in STATE_CHANGING]
        last = events[-1]
        if not changing:
            return Ahead(last, None, events)
        line = ((event.body_json, payload or b"") for event, payload in changing)
        rebuilt = replay_small(state, line, partial(tensor, check=False), last.state_after)
        if rebuilt is not None:
            return Ahead(last, rebuilt, events)
        if any(event.blobs for event, _ in changing):
            return None
        moves = [Move(event, undo=False) for event, _ in changing]
        inline = {event.seq: payload or b"" for event, payload in news}

        def payloads(wanted: Sequence[Event]) -> Sequence[Portion]:
            return [Portion.whole(inline[event.seq]) for event in wanted]

        sources = Sources(tensor, payloads, history.whole)
        rebuilt = replay(state, moves, sources, last.state_after, history.pool)
        return Ahead(last, rebuilt, events)
    except CorruptLedger:
        return None  # the general way says what it is, or finds a way round it


def told_on(
    head: Event, state: StateDigest, events: Sequence[Event], tensors: Sequence[ToldTensor]
) -> Ahead | None:
    """The same of what a neighbour told: events from `head` on, and the tensors that they, or some
    events before, changed. None where they are not of these parameters.

    Whether that comes to the state of the last event is for whoever shows it.
    """
    made: dict[str, torch.Tensor] = {}
    chunks: dict[str, bytearray] = {}
    digests: dict[str, bytes] = {}
    try:
        for one in tensors:
            if one.seq > head.seq:
                made[one.name] = from_bytes(state.specs[one.name], one.data)
                chunks[one.name] = hashed = chunk_digests(np.frombuffer(one.data, np.uint8))
                digests[one.name] = root(hashed)
    except (KeyError, InvalidRequest):
        return None
    if not made:
        return Ahead(events[-1], None, events)
    return Ahead(events[-1], RebuiltTensors(made, chunks, state.with_digests(digests)), events)


def leads_to(head: Event, news: News, digest: bytes) -> bool:
    """Whether these events are behind `head`, and one of them alone changes the state, to that with
    this digest."""
    before = head
    for event, _ in news:
        if event.prev != before.hash:
            return False
        before = event
    changes = [event for event, _ in news if event.kind in STATE_CHANGING]
    return len(changes) == 1 and (changes[0].parent, changes[0].node, changes[0].state_after) == (
        head.node,
        changes[0].seq,
        digest,
    )


def _is_line(head: Event, news: News) -> bool:
    """Whether each event follows the one before, in the log and in the tree, and its payload is at
    hand."""
    before = head
    for event, payload in news:
        if event.prev != before.hash:
            return False
        if event.kind in STATE_CHANGING:
            if event.node != event.seq or event.parent != before.node:
                return False
            if payload is None and event.payload:
                return False
        before = event
    return True
