"""Which SQLite is used: one without the WAL-reset fault wherever there is one.

From 3.7.0 to 3.51.2 two connections that checkpoint or restart a write-ahead log at the same moment
can lose a committed transaction (https://sqlite.org/wal.html, "The WAL-Reset Bug"). The fix was
taken back to 3.44.6 and 3.50.7. `pysqlite3` brings a library of its own; Python's is the system's.
"""

import sqlite3
from typing import Any

_FIXED = ((3, 44, 6), (3, 50, 7), (3, 51, 3))  # the last one and everything after it


def _safe(version: tuple[int, ...]) -> bool:
    return version >= _FIXED[-1] or any(
        version[:2] == fixed[:2] and version >= fixed for fixed in _FIXED
    )


def _choose() -> Any:
    try:
        from pysqlite3 import dbapi2 as bundled
    except ImportError:
        return sqlite3
    chosen: Any = max(bundled, sqlite3, key=_rank)
    return chosen


def _rank(module: Any) -> tuple[bool, tuple[int, ...]]:
    return _safe(module.sqlite_version_info), module.sqlite_version_info


driver: Any = _choose()
"""A DB-API module with the interface of `sqlite3`; its exceptions are its own."""


def is_safe() -> bool:
    """Whether the library in use is without the fault."""
    return _safe(driver.sqlite_version_info)


def name() -> str:
    """The library and its version, and that it is below a safe one where it is."""
    return f"SQLite {driver.sqlite_version}" + ("" if is_safe() else " (unsafe, below 3.51.3)")


def weakness() -> str | None:
    """What to tell whoever runs this; None when all is well."""
    if is_safe():
        return None
    return (
        f"SQLite {driver.sqlite_version} can lose a committed transaction when two programs"
        " checkpoint at once (fixed in 3.51.3): install pysqlite3. Until then writers of the ledger"
        " keep out of each other's way, but leave the database alone with other programs"
    )
