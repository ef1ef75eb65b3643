"""The append loop: propose on the head, append, and again when another writer was faster.

The writer of live weights (`writing.writer`) takes its patience from here. Events that change no
state can be appended by `append_stateless` from any process, with no model at hand.
"""

import random
import time
from collections.abc import Callable

from weightledger.ledger.errors import SeqTaken, StorageBusy
from weightledger.ledger.events import Annotation, Draft, Event, seal
from weightledger.ledger.history.reader import History
from weightledger.ledger.store.attached import Attached
from weightledger.ledger.writing.caller import ANYONE, Caller

_PATIENCE_S = 10.0
_PATIENCE = 10  # attempts: one may take longer than that, or the machine stand still
_BACKOFF_S = 0.001
_MOST_BACKOFF_S = 0.1


Stateless = tuple[Draft, Attached]
"""An event to append that changes no state, and what it brings with it."""


def append_stateless(
    history: History, propose: Callable[[Event], Stateless], *, caller: Caller = ANYONE
) -> Event:
    """Append what `propose` makes of the head; asked again when another writer was faster.

    StorageBusy when it goes on losing.
    """
    with history.store.turn() as turn:
        event = _appended(history, propose, caller)
        turn.head = event.seq
    return event


def _appended(history: History, propose: Callable[[Event], Stateless], caller: Caller) -> Event:
    annotation = Annotation(caller.actor, caller.reason)
    started = time.perf_counter()
    attempts = 0
    while True:
        head = history.head()
        draft, attached = propose(head)
        now, request = time.time_ns() // 1000, caller.request_id
        event = seal(draft, history.model, head, now, annotation=annotation, request_id=request)
        try:
            history.store.append((event, annotation, attached))
        except SeqTaken:
            attempts += 1
            if out_of_patience(started, attempts):
                raise gave_up(attempts, history.model) from None
            back_off(attempts)
            continue
        return event


def out_of_patience(started: float, attempts: int) -> bool:
    """Whether a write that began at `started`, by `time.perf_counter`, has lost often enough and
    for long enough."""
    return attempts >= _PATIENCE and time.perf_counter() - started > _PATIENCE_S


def back_off(attempts: int) -> None:
    """Wait a random moment that doubles with each attempt."""
    most = min(_BACKOFF_S * 2**attempts, _MOST_BACKOFF_S)
    time.sleep(random.random() * most)


def gave_up(attempts: int, model: str) -> StorageBusy:
    """The error of a write that lost every time; it contradicts nothing and may be sent again."""
    return StorageBusy(f"other writers won {attempts} times in a row on model {model!r}; retry")
