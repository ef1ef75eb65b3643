"""Appending events that change no state: from any process, with no model at hand."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from weightledger.ledger.errors import SeqTaken
from weightledger.ledger.events.event import Annotation, Draft, Event, seal
from weightledger.ledger.history.reader import History
from weightledger.ledger.store import Append
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.racing import back_off, gave_up, out_of_patience


@dataclass(frozen=True, slots=True)
class Fact:
    """An event to append, and the snapshots that are forgotten with it."""

    draft: Draft
    dropped_snapshots: Sequence[int] = ()


def append_fact(
    history: History, propose: Callable[[Event], Fact], *, caller: Caller = ANYONE
) -> Event:
    """Append what `propose` makes of the head; asked again when another writer was faster.

    Conflict when it goes on losing.
    """
    annotation = Annotation(caller.actor, caller.reason)
    started = time.perf_counter()
    attempts = 0
    while True:
        head = history.head()
        fact = propose(head)
        draft = replace(fact.draft, annotation=annotation, request_id=caller.request_id)
        event = seal(draft, history.model, head, time.time_ns() // 1000)
        try:
            history.store.append(
                Append(event, annotation, dropped_snapshots=fact.dropped_snapshots)
            )
        except SeqTaken:
            attempts += 1
            if out_of_patience(started):
                raise gave_up(attempts, history.model) from None
            back_off(attempts)
            continue
        return event
