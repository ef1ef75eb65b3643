"""How far a log has got, and waiting for it to go on."""

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.sql.wakeups import Wake
from weightledger.ledger.store.model_rows import ModelRows

_LAST_SEQ = f"SELECT max(event_key) & {SEQ_MASK} FROM events WHERE event_key BETWEEN ? AND ?"


def last_seq(of: ModelRows) -> int:
    """See `AppendLog.last_seq`."""
    with of.database.look() as execute:
        return _last_seq(of, execute)


def wait(of: ModelRows, after: int, timeout_s: float, wake: Wake) -> int:
    """See `AppendLog.wait`. Holds a connection meanwhile, and no transaction."""
    database = of.database
    changed = database.backend.changed()
    with database.session() as execute:
        return database.wakeups.wait(
            of.model_id,
            lambda: _last_seq(of, execute),
            lambda: changed(execute),
            after,
            timeout_s,
            wake,
        )


def _last_seq(of: ModelRows, execute: Execute) -> int:
    (last,) = execute(_LAST_SEQ, of.span()).fetchone()
    if last is None:
        raise CorruptLedger(f"the log of {of.model!r} has no event", seq=0)
    return int(last)
