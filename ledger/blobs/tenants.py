"""Which ledgers keep blobs at one place: a note of each lies beside the blobs.

A collector deletes what no log of its own ledger refers to. Where another ledger keeps its blobs
too, or where a ledger was copied with its database only, that would be the other's weights. So who
refers to blobs leaves a note first, and a collector goes on only where there is none but its own.
Blobs in the database itself are nobody else's.

A note's id tells ledgers apart by their first event, and copies of one ledger by the place of the
database: a ledger that was moved is taken for another until somebody says that it is the same.
"""

import re
import threading
from hashlib import sha256
from typing import NamedTuple, Protocol, runtime_checkable

from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.errors import SharedBlobs
from weightledger.ledger.sql.database import Database

NOTES = "ledgers"
"""What notes lie under, by their ids."""

_FIRST = "SELECT event_hash FROM events ORDER BY event_key LIMIT 1"
_HALF = 16
_ID = re.compile(rf"[0-9a-f]{{{_HALF}}}-[0-9a-f]{{{_HALF}}}")


class Tenant(NamedTuple):
    """A ledger with blobs at a place: `name` is its database's, as people know it."""

    id: str
    name: str

    def is_kin(self, other: "Tenant") -> bool:
        """Whether both began with the same event: one is a copy of the other, or was it."""
        return self.id[:_HALF] == other.id[:_HALF]


@runtime_checkable
class Shareable(Protocol):
    """A blob store that ledgers can share, knowingly or not."""

    def settle(self, tenant: Tenant) -> None:
        """Note that a ledger keeps blobs here; durable when this returns."""

    def tenants(self) -> list[Tenant]:
        """Whom there are notes of."""

    def leave(self, tenant: Tenant) -> None:
        """Take a note away; there may be none."""

    def note(self, tenant: Tenant) -> str:
        """Where the note of a ledger lies, for people."""


class Tenancy:
    """One ledger's place in its blob store; safe to share between threads."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs if isinstance(blobs, Shareable) else None
        self._settled = self._blobs is None
        self._settling = threading.Lock()

    def settle(self) -> None:
        """Leave this ledger's note, once a process; an empty ledger has none yet."""
        if self._settled or self._blobs is None:
            return
        with self._settling:
            tenant = self._tenant()
            if tenant is not None:
                self._blobs.settle(tenant)
                self._settled = True

    def require_alone(self) -> None:
        """Raise SharedBlobs where blobs may be another ledger's, too."""
        tenant = self._tenant()
        if self._blobs is None or tenant is None:
            return
        self.settle()
        others = [other for other in self._blobs.tenants() if other.id != tenant.id]
        if others:
            named = " and ".join(other.name for other in others)
            notes = " and ".join(self._blobs.note(other) for other in others)
            raise SharedBlobs(
                f"nothing was dropped: {named} keeps blobs at the same place, and what this ledger"
                " does not need may be all that the other has. Give one of them a place of its own"
                " with `weightledger move`; if the other is this ledger before it was moved, or is"
                f" no more, delete {notes}"
            )

    def take_over(self) -> None:
        """Settle where a copy of the blobs was brought by hand: the notes of this ledger at another
        place, and of what it is a copy of, came with them."""
        tenant = self._tenant()
        if self._blobs is None or tenant is None:
            return
        for other in self._blobs.tenants():
            if other.is_kin(tenant):
                self._blobs.leave(other)
        self.settle()

    def leave(self) -> None:
        """Take this ledger's note away: its blobs are elsewhere now."""
        tenant = self._tenant()
        if self._blobs is not None and tenant is not None:
            self._blobs.leave(tenant)

    def _tenant(self) -> Tenant | None:
        with self._database.read() as execute:
            row = execute(_FIRST).fetchone()
            place = self._database.backend.place(execute)
        if row is None:
            return None
        halves = (bytes(row[0]).hex()[:_HALF], sha256(place.encode()).hexdigest()[:_HALF])
        name = place if self._database.kind == "sqlite" else self._database.name
        return Tenant("-".join(halves), name)


def tenant_named(id: str, text: str) -> Tenant | None:
    """The ledger that a note is of; None for a file of someone else."""
    return Tenant(id, text.strip()) if _ID.fullmatch(id) else None
