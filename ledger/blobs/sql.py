"""Blobs in the ledger's own database, so that they can share an event's transaction.

A blob is a row that says how long it is and when it was last put, and its bytes in rows of at most
16 MiB. Digests are taken in order wherever several rows are locked, so two writers cannot wait for
each other. Times are the database's, and each touch is later than the one before.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.blobs import (
    Buffer,
    Stored,
    absent,
    as_view,
    cut_short,
    damaged,
    require_size,
)
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.heap import keep_blocks
from weightledger.ledger.sql.backend import Backend, Execute
from weightledger.ledger.sql.bulk import marks, pieces
from weightledger.ledger.sql.database import Database
from weightledger.ledger.tensors.digest import content_digest

PART_BYTES = 16 * 1024 * 1024

# A part is read into memory of the driver and from there into Python's, each time anew.
_KEPT_BYTES = PART_BYTES + PART_BYTES // 4

_INSERT_PART = (
    "INSERT INTO blob_parts (digest, part, data) VALUES (?, ?, ?)"
    " ON CONFLICT (digest, part) DO NOTHING"
)
_FIRST = (
    "SELECT b.size, {slice} FROM blobs b"
    " LEFT JOIN blob_parts p ON p.digest = b.digest AND p.part = 0{slices} WHERE b.digest = ?"
)
_NEXT = "SELECT {slice} FROM blob_parts p{slices} WHERE p.digest = ? AND p.part = ?"
_IS_THERE = "SELECT 1 FROM blobs WHERE digest = ?"
_RANGE = "SELECT substr(data, ?, ?) FROM blob_parts WHERE digest = ? AND part = ?"
_PAGE = 1000
_LIST = f"SELECT digest, size, touched_at FROM blobs WHERE digest > ? ORDER BY digest LIMIT {_PAGE}"
# Whoever touches the row at the same time goes first or finds it gone: the condition is looked at
# again once the row's lock is held.
_DELETE = (
    "DELETE FROM blobs WHERE digest = ? AND touched_at < ?"
    " AND touched_at = coalesce(CAST(? AS bigint), touched_at)"
)
_DELETE_PARTS = "DELETE FROM blob_parts WHERE digest = ?"


_Slices = list[tuple[int, Any]]
"""Of a part where each slice starts, and its bytes."""

SLICED_BYTES = 2 * 1024 * 1024
"""Of larger blobs the parts are read in slices. For what is smaller the statement takes longer than
it saves, and who rolls back reads many of these."""

_start = itemgetter(0)


class _Reading:
    """Statements that read the parts of a blob, each in slices or as the one that it is."""

    def __init__(self, slice_of: str, slices: str) -> None:
        self._first = _FIRST.format(slice=slice_of, slices=slices)
        self._next = _NEXT.format(slice=slice_of, slices=slices)

    def first(self, execute: Execute, digest: bytes) -> tuple[int, _Slices]:
        """How long a blob is, and its first part."""
        rows = execute(self._first, (digest,)).fetchall()
        if not rows:
            raise absent(digest)
        return rows[0][0], [(at, data) for _, at, data in rows if data is not None]

    def next(self, execute: Execute, digest: bytes, part: int) -> _Slices:
        """Another part."""
        slices: _Slices = execute(self._next, (digest, part)).fetchall()
        if not slices:
            raise CorruptLedger(f"blob {digest.hex()} lacks its part {part}")
        return slices


class SqlBlobs:
    """`ledger.blobs.BlobStore` over the tables `blobs` and `blob_parts`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._whole = _Reading("0, p.data", "")
        self._sliced = _Reading(database.backend.SLICE, database.backend.SLICES)
        keep_blocks(_KEPT_BYTES)

    def put(self, digest: bytes, data: Buffer) -> None:
        """Store `data` under its digest; a blob that exists is touched, not written again."""
        with self._database.write() as execute:
            store_blobs(execute, self._database.backend, {digest: data})

    def rewrite(self, digest: bytes, data: Buffer) -> None:
        """Store `data` in place of what is stored under its digest."""
        with self._database.write() as execute:
            execute(_DELETE_PARTS, (digest,))
            execute("DELETE FROM blobs WHERE digest = ?", (digest,))
            store_blobs(execute, self._database.backend, {digest: data})

    def get(self, digest: bytes) -> bytes:
        """The bytes of a blob; CorruptLedger when it is missing or does not match."""
        with self._database.read() as execute:
            size, slices = self._whole.first(execute, digest)
            pieces = _in_order(slices, digest)
            for part in range(1, _parts(size)):
                pieces += _in_order(self._whole.next(execute, digest, part), digest)
        data = bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
        if len(data) != size or content_digest(data) != digest:
            raise damaged(digest)
        return data

    def read_into(self, digest: bytes, out: NDArray[np.uint8], *, check: bool = True) -> None:
        """Fill `out`, whose length is the blob's; see `BlobStore.read_into`.

        Holds one part in memory at a time.
        """
        at = 0
        # One row is of one state by itself; a transaction would be two more journeys.
        reading = self._database.look if len(out) <= PART_BYTES else self._database.read
        parts = self._sliced if len(out) > SLICED_BYTES else self._whole
        with reading(lent=True) as execute:
            size, slices = parts.first(execute, digest)
            require_size(digest, size, len(out))
            for part in range(1, _parts(size) + 1):
                at += _put(slices, out[at:], digest)
                if part < _parts(size):
                    slices = parts.next(execute, digest, part)
        if at != size or (check and content_digest(out) != digest):
            raise damaged(digest)

    def read_range(self, digest: bytes, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of a blob; see `BlobStore.read_range`."""
        pieces: list[bytes] = []
        with self._database.read() as execute:
            for part in range(start // PART_BYTES, _parts(stop)):
                first = max(start - part * PART_BYTES, 0)
                size = min(stop - part * PART_BYTES, PART_BYTES) - first
                row = execute(_RANGE, (first + 1, size, digest, part)).fetchone()
                if row is None and execute(_IS_THERE, (digest,)).fetchone() is None:
                    raise absent(digest)
                pieces.append(b"" if row is None else bytes(_part(digest, row[0])))
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(data) != stop - start:
            raise cut_short(digest, stop)
        return data

    def missing(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the digests that are not stored; those that are get touched."""
        wanted = sorted(set(digests))
        if not wanted:
            return set()
        with self._database.write() as execute:
            return touch_blobs(execute, self._database.backend, wanted)

    @contextmanager
    def held(self, digests: Iterable[bytes]) -> Iterator[set[bytes]]:
        """Touched in a transaction of its own: who refers to them does so in the same one."""
        yield self.missing(digests)

    def now(self) -> int:
        """The time by the database's clock, in UTC microseconds."""
        with self._database.look() as execute:
            (now,) = execute(f"SELECT {self._database.backend.NOW}").fetchone()
        return int(now)

    def stored(self) -> Iterator[Stored]:
        """Every blob by digest; no transaction is held between two pages."""
        last = b""
        while True:
            with self._database.read() as execute:
                page = [Stored(*row) for row in execute(_LIST, (last,))]
            yield from page
            if len(page) < _PAGE:
                return
            last = page[-1].digest

    def delete_unreferenced(
        self, digest: bytes, older_than: int, *, last_touched: int | None = None
    ) -> bool:
        """Delete a blob unless it was touched since; see `BlobStore.delete_unreferenced`."""
        with self._database.write() as execute:
            if not execute(_DELETE, (digest, older_than, last_touched)).rowcount:
                return False
            execute(_DELETE_PARTS, (digest,))
        return True

    def sweep(self, older_than: int) -> int:
        """Nothing: a transaction leaves a blob or no trace."""
        return 0


def store_blobs(execute: Execute, backend: Backend, blobs: Mapping[bytes, Buffer]) -> None:
    """Put blobs inside a transaction that is under way."""
    touched = f"touched_at = {backend.GREATEST}(blobs.touched_at + 1, {backend.NOW})"
    touch = f"UPDATE blobs SET {touched} WHERE digest = ?"
    # Another writer may store the same blob between the two statements.
    insert = (
        f"INSERT INTO blobs (digest, size, touched_at) VALUES (?, ?, {backend.NOW})"
        f" ON CONFLICT (digest) DO UPDATE SET {touched}"
    )
    for digest in sorted(blobs):
        if execute(touch, (digest,)).rowcount:
            continue
        view = as_view(blobs[digest])
        execute(insert, (digest, len(view)))
        for part in range(_parts(len(view))):
            start = part * PART_BYTES
            execute(_INSERT_PART, (digest, part, view[start : start + PART_BYTES]))


def touch_blobs(execute: Execute, backend: Backend, digests: Iterable[bytes]) -> set[bytes]:
    """Touch blobs inside a transaction that is under way; those that are not stored."""
    wanted = sorted(set(digests))
    unseen = set(wanted)
    for piece in pieces(wanted):
        rows = execute(
            f"UPDATE blobs SET touched_at = {backend.GREATEST}(touched_at + 1, {backend.NOW})"
            f" WHERE digest IN (SELECT digest FROM blobs WHERE digest IN ({marks(len(piece))})"
            f" ORDER BY digest {backend.FOR_UPDATE}) RETURNING digest",
            piece,
        )
        unseen.difference_update(digest for (digest,) in rows.fetchall())
    return unseen


def _parts(size: int) -> int:
    return -(-size // PART_BYTES)


def _put(slices: _Slices, out: NDArray[np.uint8], digest: bytes) -> int:
    """Put the slices of a part where they belong in `out`; how many bytes they have."""
    size = 0
    for at, data in slices:
        stop = at + len(_part(digest, data))
        if stop > len(out):
            raise damaged(digest)
        out[at:stop] = np.frombuffer(data, np.uint8)
        size += stop - at
    return size


def _in_order(slices: _Slices, digest: bytes) -> list[bytes | memoryview]:
    return [_part(digest, data) for _, data in sorted(slices, key=_start)]


def _part(digest: bytes, data: object) -> bytes | memoryview:
    if not isinstance(data, bytes | memoryview):
        raise damaged(digest)
    return data
