"""The sockets of connections to PostgreSQL, which go with their process though a fork lives on.

A fork has every socket, too, and for as long as it lives the server does not learn that who made
the connection has died: an advisory lock and an open transaction would be held on. So a fork puts
nothing in their place; the connection itself is the other process's, and is not closed.
"""

import os
import weakref
from typing import Any

import psycopg

from weightledger.ledger import forks


class _Sockets:
    """Those of all connections of this process."""

    def __init__(self) -> None:
        self.connections: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()
        forks.tell(self)

    def forked(self) -> None:
        """See `forks.Forked`."""
        connections = [one for one in self.connections if not one.closed]
        self.connections.clear()
        if connections:
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for one in connections:
                os.dup2(nothing, one.fileno(), inheritable=False)
            os.close(nothing)


_sockets = _Sockets()


def keep(connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """Have a connection's socket given up in forks."""
    _sockets.connections.add(connection)
    return connection
