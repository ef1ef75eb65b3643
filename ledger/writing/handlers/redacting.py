"""What redaction does: texts beside events go, with the event that says so."""

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.history.redactions import MOST, next_number, redactions_of
from weightledger.ledger.writing.commands import Redact
from weightledger.ledger.writing.proposed import ProposedEvent, stateless
from weightledger.ledger.writing.staged import Staged


def redact(command: Redact, staged: Staged) -> ProposedEvent:
    """One event; appending it takes away what it names."""
    store = staged.history.store
    first, *more = redactions_of(store, command.events, command.texts)
    if more:
        raise InvalidRequest(f"at most {MOST:,} events are redacted at a time", param="events")
    return stateless(staged, first, number=next_number(store))
