"""What the database's refusals mean: constraint names and trigger messages to ledger errors."""

from weightledger.ledger.errors import Conflict, KeyTaken, LedgerError, SeqTaken
from weightledger.ledger.sql import triggers

# SQLite names the columns of a violated index, PostgreSQL the index, a trigger says its message.
_SEQ = (
    triggers.GAP,
    triggers.SEQ_TAKEN,
    triggers.MODEL_TAKEN,
    "events_pkey",
    "events.event_key",
    "models_name",
    "models.name",
)
_KEY = (triggers.KEY_TAKEN, "events_idempotency", "events.idempotency_key")
_NUMBER = (triggers.NUMBER_TAKEN, "events_number", "events.number")
_CHANGE = (triggers.CHANGE_TAKEN, "api_key_changes_pkey", "api_key_changes.number")


def refusal(reason: str) -> LedgerError | None:
    """The ledger error for a constraint name or trigger message; None for any other text."""
    if any(name in reason for name in _SEQ):
        return SeqTaken("another writer appended this event first")
    if any(name in reason for name in _KEY):
        return KeyTaken("another writer used this idempotency key first")
    if any(name in reason for name in _NUMBER):
        return Conflict("the log has an event with this number already")
    if any(name in reason for name in _CHANGE):
        return Conflict("this key was changed by somebody else just now; look, and try again")
    return None
