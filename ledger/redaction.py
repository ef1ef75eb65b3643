"""Redaction: taking away what somebody wrote beside an event, while the log stays provable.

Of the actor, the reason and the metadata a header holds salted digests only. So the text can go,
and with the last text of an event its salt, without which nobody can try out what the text may
have been; every hash stays as it was. That it went, who took it away and why is an event, in the
same transaction. `verify` accepts a text that is missing only where such an event says so.

Here it is done in the database, with no model at hand; a served log has a command for it
(`writing.commands.Redact`), which the two-person rule holds back.
"""

from collections.abc import Sequence

from weightledger.ledger.events import Draft, Event
from weightledger.ledger.events.bodies import Redaction
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.redactions import TEXTS, next_number, redactions_of
from weightledger.ledger.store.attached import NOTHING
from weightledger.ledger.writing.append_loop import Stateless, append_stateless
from weightledger.ledger.writing.caller import ANYONE, Caller


def redact(
    history: History,
    seqs: Sequence[int],
    texts: Sequence[str] = TEXTS,
    *,
    caller: Caller = ANYONE,
) -> list[Event]:
    """Take texts away from events; gives the events that say so, of which there is one as a rule.

    On PostgreSQL a server's role may do it (`sql.redact_function`). InvalidRequest for a text that
    no event has, and where none of these events has one of these texts.
    """
    redactions = redactions_of(history.store, seqs, texts)
    return [_redact(history, redaction, caller) for redaction in redactions]


def _redact(history: History, redaction: Redaction, caller: Caller) -> Event:
    def propose(head: Event) -> Stateless:
        draft = Draft(redaction, head.state_after, number=next_number(history.store))
        return draft, NOTHING

    return append_stateless(history, propose, caller=caller)
