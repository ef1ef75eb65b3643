"""Appending events that change no state: from any process, with no model at hand."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ledger.caller import ANYONE, Caller
from ledger.errors import Conflict
from ledger.events import Annotation, Draft, Event, seal
from ledger.history import History
from ledger.store import Append, SeqTaken

_PATIENCE_S = 10.0
_MOST_BACKOFF_S = 0.1


@dataclass(frozen=True, slots=True)
class Fact:
    """An event to append, and the snapshots that are forgotten with it."""

    draft: Draft
    dropped_snapshots: Sequence[int] = ()


def append_fact(
    history: History, propose: Callable[[Event], Fact], *, caller: Caller = ANYONE
) -> Event:
    """Append what `propose` makes of the head; asked again when another writer was faster.

    Conflict after ten seconds of losing.
    """
    annotation = Annotation(caller.actor, caller.reason)
    deadline = time.perf_counter() + _PATIENCE_S
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
            if time.perf_counter() > deadline:
                raise Conflict(f"other writers kept winning on model {history.model!r}") from None
            time.sleep(random.random() * _MOST_BACKOFF_S)
            continue
        return event
