"""Redaction: taking away what somebody wrote beside an event, while the log stays provable.

Of the actor, the reason and the metadata a header holds salted digests only. So the text can go,
and with the last text of an event its salt, without which nobody can try out what the text may
have been; every hash stays as it was. That it went, who took it away and why is an event, in the
same transaction. `verify` accepts a text that is missing only where such an event says so.
"""

import time
from collections.abc import Sequence

from weightledger.ledger.errors import InvalidRequest, SeqTaken
from weightledger.ledger.events import REDACTIONS, Annotation, Draft, Event, seal
from weightledger.ledger.events.bodies import Redaction
from weightledger.ledger.history.reader import History
from weightledger.ledger.store import Append, EventFilter
from weightledger.ledger.writing.append_loop import back_off, gave_up, out_of_patience
from weightledger.ledger.writing.caller import ANYONE, Caller

TEXTS = ("actor", "reason", "metadata")

_MOST = 1000  # events that one event redacts


def redact(
    history: History,
    seqs: Sequence[int],
    texts: Sequence[str] = TEXTS,
    *,
    caller: Caller = ANYONE,
) -> list[Event]:
    """Take texts away from events; gives the events that say so, of which there is one as a rule.

    On PostgreSQL it takes the owner of the tables. InvalidRequest for a text that no event has, and
    where none of these events has one of these texts.
    """
    unknown = sorted(set(texts) - set(TEXTS))
    if unknown or not texts:
        raise InvalidRequest(
            f"what can be redacted is {', '.join(TEXTS)}, got {unknown or 'nothing'}", param="field"
        )
    chosen = tuple(text for text in TEXTS if text in texts)
    there = history.store.annotations(seqs)
    having = [
        seq
        for seq in sorted(set(seqs))
        if any(getattr(there.get(seq, Annotation()), text) is not None for text in chosen)
    ]
    if not having:
        raise InvalidRequest(f"none of these events has {' or '.join(chosen)}", param="event")
    pages = [having[at : at + _MOST] for at in range(0, len(having), _MOST)]
    return [_redact(history, Redaction(tuple(page), chosen), caller) for page in pages]


def by_actor(history: History, actor: str) -> list[int]:
    """The seqs of every event of an actor."""
    return [event.seq for event in history.events(EventFilter(actors=[actor]))]


def _redact(history: History, redaction: Redaction, caller: Caller) -> Event:
    note = Annotation(caller.actor, caller.reason)

    def record(head: Event) -> Append:
        number = history.store.last_number(REDACTIONS)
        draft = Draft(
            redaction,
            head.state_after,
            number=0 if number is None else number + 1,
            annotation=note,
            request_id=caller.request_id,
        )
        return Append(seal(draft, history.model, head, time.time_ns() // 1000), note)

    started, attempts = time.perf_counter(), 0
    while True:
        try:
            return history.store.redact(redaction.events, redaction.texts, record)
        except SeqTaken:
            attempts += 1
            if out_of_patience(started):
                raise gave_up(attempts, history.model) from None
            back_off(attempts)
