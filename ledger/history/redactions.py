"""Redaction, told by the log itself: what can be taken away from beside events, and what was."""

from collections.abc import Sequence

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import REDACTED, REDACTIONS, Annotation
from weightledger.ledger.events.bodies import Redaction, body_of
from weightledger.ledger.store import EventFilter, EventStore

TEXTS = ("actor", "reason", "metadata")
MOST = 1000
"""Events that one event redacts."""

_ALL = (1 << 63) - 1


def redactions_of(store: EventStore, seqs: Sequence[int], texts: Sequence[str]) -> list[Redaction]:
    """What takes these texts away from these events, of which there is one as a rule.

    InvalidRequest for a text that no event has, and where none of these events has one of them.
    """
    unknown = sorted(set(texts) - set(TEXTS))
    if unknown or not texts:
        raise InvalidRequest(
            f"what can be redacted is {', '.join(TEXTS)}, got {unknown or 'nothing'}",
            param="fields",
        )
    chosen = tuple(text for text in TEXTS if text in texts)
    there = store.annotations(seqs)
    having = [
        seq
        for seq in sorted(set(seqs))
        if any(getattr(there.get(seq, Annotation()), text) is not None for text in chosen)
    ]
    if not having:
        raise InvalidRequest(f"none of these events has {' or '.join(chosen)}", param="events")
    pages = [having[at : at + MOST] for at in range(0, len(having), MOST)]
    return [Redaction(tuple(page), chosen) for page in pages]


def next_number(store: EventStore) -> int:
    """The number of the next redaction."""
    last = store.last_number(REDACTIONS)
    return 0 if last is None else last + 1


def seqs_of_actor(store: EventStore, actor: str) -> list[int]:
    """The seqs of every event of an actor, newest first."""
    return [event.seq for event in store.select(EventFilter(actors=[actor]), limit=_ALL)]


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
