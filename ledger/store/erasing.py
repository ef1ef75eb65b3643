"""Taking texts away from beside events: the one change of what stands beside the log's hashes.

It is part of appending the event that says so, in its transaction, in which alone the triggers of
these tables allow it.
"""

from collections.abc import Sequence

from weightledger.ledger.events.bodies import Redaction
from weightledger.ledger.sql.backend import Backend, Execute
from weightledger.ledger.sql.bulk import marks, pieces
from weightledger.ledger.store import blocks
from weightledger.ledger.store.rows import key_of

_PROTECTED = ("annotations", "touches")
_NO_SALT = b""


def erase(
    execute: Execute, backend: Backend, model_id: int, seq: int, redaction: Redaction
) -> None:
    """Remove what the event `seq` says is redacted, wherever it is kept; with an event's last text
    its salt."""
    keys = [key_of(model_id, seq) for seq in redaction.events]
    if not _any_left(execute, keys, redaction.texts):  # an imported log came without them
        return
    if backend.REDACT is not None:
        execute(backend.REDACT, (key_of(model_id, seq),))
    else:
        _erase(execute, backend, keys, redaction)
    blocks.forget(execute, model_id, {seq // blocks.BLOCK for seq in redaction.events})


def _erase(execute: Execute, backend: Backend, keys: Sequence[int], redaction: Redaction) -> None:
    backend.unprotect(execute, _PROTECTED)
    nothing = ", ".join(f"{text} = NULL" for text in redaction.texts)
    for piece in pieces(keys):
        among = f"event_key IN ({marks(len(piece))})"
        execute(f"UPDATE annotations SET {nothing} WHERE {among}", piece)
        execute(
            f"UPDATE annotations SET salt = ? WHERE {among}"
            " AND actor IS NULL AND reason IS NULL AND metadata IS NULL",
            (_NO_SALT, *piece),
        )
        if "actor" in redaction.texts:
            execute(f"UPDATE touches SET actor = NULL WHERE {among} AND actor IS NOT NULL", piece)
    backend.protect(execute, _PROTECTED)


def _any_left(execute: Execute, keys: Sequence[int], texts: Sequence[str]) -> bool:
    there = " OR ".join(f"{text} IS NOT NULL" for text in texts)
    return any(
        execute(
            f"SELECT 1 FROM annotations WHERE event_key IN ({marks(len(piece))}) AND ({there})"
            " LIMIT 1",
            piece,
        ).fetchone()
        for piece in pieces(keys)
    )
