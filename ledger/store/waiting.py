"""How far a log has got, and waiting for it to go on."""

from collections.abc import Callable, Sequence

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.sql.wakeups import Wake
from weightledger.ledger.store.model_rows import ModelRows

_COUNT = (
    f"SELECT COALESCE((max(event_key) & {SEQ_MASK}) + 1, 0) FROM events"
    " WHERE event_key BETWEEN ? AND ?"
)
"""How many events a log has, by its last one's key: one entry of the index."""

Number = Callable[[str, Sequence[int]], int]


def last_seq(of: ModelRows) -> int:
    """See `AppendLog.last_seq`."""
    with of.database.looking() as (_, number):
        return _last_seq(of, number)


def wait(of: ModelRows, after: int, timeout_s: float, wake: Wake) -> int:
    """See `AppendLog.wait`. Holds a connection meanwhile, and no transaction."""
    database = of.database
    changed = database.backend.changed()
    with database.looking() as (execute, number):
        return database.wakeups.wait(
            of.model_id,
            lambda: _last_seq(of, number),
            lambda: changed(execute),
            lambda last: last > after,
            timeout_s,
            wake,
        )


def _last_seq(of: ModelRows, number: Number) -> int:
    count = number(_COUNT, of.span())
    if count == 0:
        raise CorruptLedger(f"the log of {of.model!r} has no event", seq=0)
    return count - 1
