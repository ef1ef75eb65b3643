"""Statements with many values, in pieces that both databases take and cache."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any, TypeVar

from weightledger.ledger.sql.backend import Execute

MOST = 500  # values of an IN list, rows of an INSERT

T = TypeVar("T")


def pieces(items: Iterable[T], most: int = MOST) -> Iterator[list[T]]:
    """The items in order, in lists of at most `most`."""
    rest = iter(items)
    while piece := list(islice(rest, most)):
        yield piece


@lru_cache
def marks(count: int) -> str:
    """`?` for each of `count` values, to stand between parentheses."""
    return ", ".join("?" * count)


def insert_rows(execute: Execute, into: str, rows: Iterable[Sequence[Any]]) -> None:
    """Insert rows; `into` is the table with its columns, "touches (parameter_id, event_key)"."""
    for piece in pieces(rows):
        execute(_insert(into, len(piece), len(piece[0])), tuple(chain.from_iterable(piece)))


@lru_cache
def _insert(into: str, rows: int, columns: int) -> str:
    return f"INSERT INTO {into} VALUES {', '.join([f'({marks(columns)})'] * rows)}"
