"""The events of a log as they come, none missed and none twice: each is known by its seq."""

import threading
from collections.abc import Iterator

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import Event
from weightledger.ledger.sql.wakeups import Wake
from weightledger.ledger.store import EventStore

POLL_S = 0.5
_PAGE = 256
_LOOK_UP_S = 0.5  # how often it is looked whether it is over


def starting_after(after: int | None, head: Event, param: str) -> int:
    """The seq to follow a log behind: one that it has, its last event's, `head`, by default.

    InvalidRequest, naming the field `param`, where the log does not reach so far.
    """
    if after is None:
        return head.seq
    if not 0 <= after <= head.seq:
        raise InvalidRequest(
            f"{param} {after} is beyond the log of {head.model!r}, which ends at {head.seq}: it is "
            "of another model or another ledger",
            param=param,
        )
    return after


def follow(
    store: EventStore,
    after: int | None = None,
    *,
    wake: Wake = "auto",
    ended: threading.Event | None = None,
) -> Iterator[Event]:
    """Every event after seq `after` (the head by default), in order, for ever or until `ended`.

    While there is nothing new it waits as `wake` says; see `AppendLog.wait`.
    """
    last = starting_after(after, store.head(), "after_seq")
    ended = ended or threading.Event()
    while not ended.is_set():
        page = list(store.scan(last + 1, last + 1 + _PAGE))
        for event in page:
            yield event
            last = event.seq
        if not page:
            store.wait(last, _LOOK_UP_S, wake)
