"""Taking texts away from the tables, inside a transaction in which that is allowed."""

from collections.abc import Sequence

from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.bulk import marks, pieces

PROTECTED = ("annotations", "touches")
"""Tables whose triggers refuse it."""

_NO_SALT = b""


def erase(execute: Execute, keys: Sequence[int], texts: Sequence[str]) -> None:
    """Remove these texts of events, wherever they are kept; with an event's last one its salt."""
    nothing = ", ".join(f"{text} = NULL" for text in texts)
    for piece in pieces(keys):
        among = f"event_key IN ({marks(len(piece))})"
        execute(f"UPDATE annotations SET {nothing} WHERE {among}", piece)
        execute(
            f"UPDATE annotations SET salt = ? WHERE {among}"
            " AND actor IS NULL AND reason IS NULL AND metadata IS NULL",
            (_NO_SALT, *piece),
        )
        if "actor" in texts:
            execute(f"UPDATE touches SET actor = NULL WHERE {among} AND actor IS NOT NULL", piece)
