"""How far a log has got, and waiting for it to go on."""

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.sql.wakeups import Ending, Wake
from weightledger.ledger.store.model_rows import ModelRows

_COUNT = (
    f"SELECT COALESCE((max(event_key) & {SEQ_MASK}) + 1, 0) FROM events"
    " WHERE event_key BETWEEN ? AND ?"
)
"""How many events a log has, by its last one's key: one entry of the index."""


def last_seq(of: ModelRows) -> int:
    """See `AppendLog.last_seq`."""
    with of.database.looking(_COUNT, of.span()) as (count, _):
        return _last_of(of, count())


def wait(
    of: ModelRows, after: int, timeout_s: float, wake: Wake, ended: Ending | None = None
) -> int:
    """See `AppendLog.wait`. Holds a connection meanwhile, and no transaction."""
    database = of.database

    def is_news(events: int) -> bool:
        return events == 0 or events - 1 > after

    with database.looking(_COUNT, of.span()) as (count, changed):
        counted = database.wakeups.wait(
            of.model_id, count, changed, is_news, timeout_s, wake, ended
        )
    return _last_of(of, counted)


def _last_of(of: ModelRows, count: int) -> int:
    if count == 0:
        raise CorruptLedger(f"the log of {of.model!r} has no event", seq=0)
    return count - 1
