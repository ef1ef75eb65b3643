"""One model's rows in a database: where they are, and how one of them is read as an event."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weightledger.ledger.events import Event
from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.store import rows


@dataclass(frozen=True, slots=True)
class ModelRows:
    """What every query of one model's events needs; safe to share between threads."""

    database: Database
    model_id: int
    model: str

    def key(self, seq: int) -> int:
        """The primary key of an event; see `rows.key_of`."""
        return rows.key_of(self.model_id, seq)

    def span(self) -> tuple[int, int]:
        """The first and the last key that the model's events can have."""
        return self.key(0), self.key(SEQ_MASK)

    def event(self, row: Any) -> Event:
        """The event of a row of `rows.COLUMNS`; CorruptLedger when it is not its header."""
        return rows.from_row(row, self.model_id, self.model)

    def events(self, page: Sequence[Any]) -> Iterable[Event]:
        """The events of rows of `rows.COLUMNS` and more, read together; see `rows.from_rows`."""
        return rows.from_rows(page, self.model_id, self.model)

    def one(self, sql: str, *params: Any) -> Event | None:
        """The event that a query gives, if it gives one."""
        with self.database.look() as execute:
            row = execute(sql, params).fetchone()
        return None if row is None else self.event(row)
