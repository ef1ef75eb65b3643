"""What a fork of this process may do with what was opened before: nothing but close it.

A connection belongs to one process: of two that use it on PostgreSQL each reads the other's
answers, and SQLite's files must not be used across a fork (https://sqlite.org/howtocorrupt.html,
"Carrying an open database file across a fork"). Threads do not come along, and the locks that they
held stay taken. So whoever asks in a fork is told to open the ledger there; and locks of open
files, which both would hold, are given up there, so that they go when their process dies.
"""

import os
import weakref
from typing import NoReturn, Protocol, SupportsIndex

from weightledger.ledger.errors import StorageError


class Forked(Protocol):
    """What is told that this process is a fork of the one that made it."""

    def forked(self) -> None:
        """Called in the fork, before anything else happens there. Must neither wait nor raise."""


class OfItsProcess:
    """What is neither copied nor pickled, since its connections and locks are of one process."""

    def __reduce_ex__(self, _: SupportsIndex) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"a {name} belongs to the process that opened it, and is neither copied nor pickled:"
            " pass on the database's URL, and open it there"
        )


_told: "weakref.WeakSet[Forked]" = weakref.WeakSet()


def tell(one: Forked) -> None:
    """Have it told in every fork, for as long as it is there."""
    _told.add(one)


def refused(what: str) -> StorageError:
    """For whoever uses in a fork what was opened before."""
    return StorageError(
        f"{what} was opened by the process that this one, {os.getpid()}, is a fork of:"
        " open it here, after the fork"
    )


def _tell() -> None:
    for one in list(_told):
        one.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)
