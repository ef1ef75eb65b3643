"""What was redacted, told by the log itself: the fold of its `redacted` events."""

from weightledger.ledger.events import REDACTED
from weightledger.ledger.events.bodies import Redaction, body_of
from weightledger.ledger.store import EventFilter, EventStore

_ALL = (1 << 63) - 1


class Redactions:
    """Which texts beside events were taken away; read from the log when one is first missing."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._known: set[tuple[int, str]] = set()

    def __call__(self, seq: int, text: str) -> bool:
        """Whether this text of an event is gone because an event of the log says so.

        What is not known is looked for anew: it may have been redacted a moment ago.
        """
        if (seq, text) not in self._known:
            where = EventFilter(kinds=[REDACTED])
            for event in self._store.select(where, limit=_ALL, newest_first=False):
                redaction = body_of(event, Redaction)
                self._known |= {(one, name) for one in redaction.events for name in redaction.texts}
        return (seq, text) in self._known
