"""Blobs in object storage: S3 and what speaks its protocol, Google Cloud Storage, Azure.

    PREFIX/DIGEST/COPY    a blob by its digest in hex; COPY is a random name, never used twice
    PREFIX/ledgers/ID     a ledger that keeps blobs here: `ledger.blobs.tenants`

Object stores cannot delete an object on the condition that nobody has touched it, and an object put
again has the ETag it had before. So an object, once there, is never written again: touching a blob
that has not been touched for a while makes a further copy of it, on the server. A collector deletes
exactly the copies it has seen to be old, and a writer refers to a copy that is young: neither can
take anything from the other, however long their requests are under way. `sweep` removes the copies
that a younger one replaces.

An object becomes visible when its upload is complete, so a blob is there whole or not at all. Parts
of uploads that were cut off are invisible; a lifecycle rule of the bucket should abort them.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import obstore
from numpy.typing import NDArray
from obstore.store import ObjectStore

from weightledger.ledger.blobs import (
    MIN_GRACE_S,
    Buffer,
    Stored,
    absent,
    as_view,
    cut_short,
    damaged,
    require_size,
)
from weightledger.ledger.blobs.failures import explained
from weightledger.ledger.blobs.tenants import NOTES, Tenant, tenant_named
from weightledger.ledger.errors import StorageUnavailable
from weightledger.ledger.tensors.digest import DIGEST_BYTES, content_digest

# Nothing larger travels in one request, so that one timeout fits them all.
PART_BYTES = 8 * 1024 * 1024

FRESH_S = MIN_GRACE_S / 2

CLIENT_OPTIONS: Any = {"connect_timeout": "5s", "timeout": "60s"}
RETRIES: Any = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}

_PARTS_AT_ONCE = 4
_REQUESTS_AT_ONCE = 8
_MOST_COPIED_BYTES = 5 * 1024**3  # by one request to S3
_TRIES = 3


class Copy(NamedTuple):
    """One object: `touched_at` in UTC microseconds, to the second as S3 tells it, rounded up."""

    touched_at: int
    size: int
    path: str


class ObjectBlobs:
    """`ledger.blobs.BlobStore` over obstore; safe to share between threads and processes.

    A copy older than `fresh_s` seconds is touched anew. That has to be well below the grace period
    of any collector, by more than what the clocks of the two may differ.
    """

    def __init__(self, store: ObjectStore, url: str, *, fresh_s: float = FRESH_S) -> None:
        self.url = url
        self._store = store
        self._fresh_s = fresh_s

    def check(self) -> None:
        """Raise StorageError or StorageUnavailable unless the bucket can be listed."""
        with explained(self.url):
            next(iter(obstore.list(self._store, chunk_size=1)), None)

    def put(self, digest: bytes, data: Buffer) -> None:
        """Store `data` under its digest; a blob that exists is touched, not sent again.

        Large data is sent in parts from where it lies.
        """
        view = as_view(data)
        newest = self._newest(digest)
        if newest and newest.size == len(view) and self._touch(digest, newest):
            return
        self._upload(digest, view)

    def rewrite(self, digest: bytes, data: Buffer) -> None:
        """Store `data` in place of what is stored under its digest."""
        damaged_copies = self._copies(digest)
        self._upload(digest, as_view(data))
        self._delete(damaged_copies)

    def get(self, digest: bytes) -> bytes:
        """The bytes of a blob; CorruptLedger when it is missing or does not match.

        Holds them twice for a moment; what is large, a tensor, is read with `read_into`.
        """
        return self._receive(digest, lambda size: np.empty(size, np.uint8)).tobytes()

    def read_into(self, digest: bytes, out: NDArray[np.uint8], *, check: bool = True) -> None:
        """Fill `out`, whose length is the blob's; see `BlobStore.read_into`."""

        def room(size: int) -> NDArray[np.uint8]:
            require_size(digest, size, len(out))
            return out

        self._receive(digest, room, check=check)

    def read_range(self, digest: bytes, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of a blob; see `BlobStore.read_range`."""
        for _ in range(_TRIES):
            newest = self._newest(digest)
            if newest is None:
                break
            if newest.size < stop:
                raise cut_short(digest, stop)
            try:
                if start == stop:
                    return b""
                return b"".join(
                    [
                        bytes(self._range(newest, at, min(at + PART_BYTES, stop)))
                        for at in range(start, stop, PART_BYTES)
                    ]
                )
            except FileNotFoundError:
                continue
        raise absent(digest)

    def missing(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the digests that are not stored; those that are get touched."""
        wanted = sorted(set(digests))

        def is_there(digest: bytes) -> bool:
            newest = self._newest(digest)
            return newest is not None and self._touch(digest, newest)

        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            found = pool.map(is_there, wanted)
            return {digest for digest, there in zip(wanted, found, strict=True) if not there}

    @contextlib.contextmanager
    def held(self, digests: Iterable[bytes]) -> Iterator[set[bytes]]:
        """Each has a copy that is young enough for half a grace period."""
        yield self.missing(digests)

    def now(self) -> int:
        """This machine's time: buckets do not tell theirs."""
        return _now()

    def stored(self) -> Iterator[Stored]:
        """Every blob by its newest copy; objects with other names are left out."""
        for digest, copies in self._by_digest():
            newest = max(copies)
            yield Stored(digest, newest.size, newest.touched_at)

    def delete_unreferenced(
        self, digest: bytes, older_than: int, *, last_touched: int | None = None
    ) -> bool:
        """Delete a blob unless it was touched since; see `BlobStore.delete_unreferenced`."""
        copies = self._copies(digest)
        if not copies:
            return False
        touched_at = max(copies).touched_at
        if touched_at >= older_than or last_touched not in (None, touched_at):
            return False
        self._delete(copies)
        return True

    def sweep(self, older_than: int) -> int:
        """Delete the copies older than `older_than` of which there is a newer one."""
        swept = 0
        for _, copies in self._by_digest():
            newest = max(copies)
            replaced = [c for c in copies if c is not newest and c.touched_at < older_than]
            self._delete(replaced)
            swept += len(replaced)
        return swept

    def settle(self, tenant: Tenant) -> None:
        """Note that a ledger keeps blobs here; see `Shareable.settle`."""
        with explained(self.url):
            obstore.put(self._store, _note(tenant), f"{tenant.name}\n".encode())

    def tenants(self) -> list[Tenant]:
        """Whom there are notes of."""
        found: list[Tenant | None] = []
        with explained(self.url):
            for page in obstore.list(self._store, f"{NOTES}/"):
                for item in page:
                    text = bytes(obstore.get(self._store, item["path"]).bytes()).decode()
                    found.append(tenant_named(item["path"].rpartition("/")[2], text))
        return [tenant for tenant in found if tenant is not None]

    def leave(self, tenant: Tenant) -> None:
        """Take a note away; there may be none."""
        with contextlib.suppress(FileNotFoundError), explained(self.url, may_be_gone=True):
            obstore.delete(self._store, _note(tenant))

    def note(self, tenant: Tenant) -> str:
        """Where the note of a ledger lies, for people."""
        return f"{self.url}/{_note(tenant)}"

    def _upload(self, digest: bytes, view: memoryview) -> None:
        """A new copy, sent in parts from where it lies."""
        with explained(self.url):
            obstore.put(
                self._store,
                _new_path(digest),
                view,
                chunk_size=PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def _copies(self, digest: bytes) -> list[Copy]:
        with explained(self.url):
            pages = obstore.list(self._store, f"{digest.hex()}/")
            return [_copy(item) for page in pages for item in page]

    def _newest(self, digest: bytes) -> Copy | None:
        return max(self._copies(digest), default=None)

    def _by_digest(self) -> Iterator[tuple[bytes, list[Copy]]]:
        """Copies of every blob; stores list by name, so those of one blob stand together."""
        for digest, group in groupby(self._listed(), lambda found: found[0]):
            yield digest, [copy for _, copy in group]

    def _listed(self) -> Iterator[tuple[bytes, Copy]]:
        pages = iter(obstore.list(self._store))
        while True:
            with explained(self.url):
                page = next(pages, None)
            if page is None:
                return
            for item in page:
                digest = _digest_in(item["path"])
                if digest is not None:
                    yield digest, _copy(item)

    def _touch(self, digest: bytes, newest: Copy) -> bool:
        """Whether the blob is still there; if so, it has a copy that no collector sees as old."""
        if newest.touched_at > _now() - self._fresh_s * 1_000_000:
            return True
        if newest.size > _MOST_COPIED_BYTES:
            return False
        try:
            with explained(self.url, may_be_gone=True):
                obstore.copy(self._store, newest.path, _new_path(digest))
        except FileNotFoundError:
            return False
        return True

    def _receive(
        self, digest: bytes, room: Callable[[int], NDArray[np.uint8]], *, check: bool = True
    ) -> NDArray[np.uint8]:
        """Fill what `room` gives for the blob's size, a few parts at once, and `check` it.

        Starts again if the newest copy is swept away by a collector after it was looked up.
        """
        for _ in range(_TRIES):
            newest = self._newest(digest)
            if newest is None:
                break
            out = room(newest.size)
            try:
                self._fill(out, newest)
            except FileNotFoundError:
                continue
            if check and content_digest(out) != digest:
                raise damaged(digest)
            return out
        raise absent(digest)

    def _fill(self, out: NDArray[np.uint8], copy: Copy) -> None:
        def one(start: int) -> None:
            piece = self._range(copy, start, min(start + PART_BYTES, copy.size))
            out[start : start + len(piece)] = np.frombuffer(memoryview(piece), np.uint8)

        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            for _ in pool.map(one, range(0, copy.size, PART_BYTES)):
                pass  # what fails is raised here, and parts not yet asked for are given up

    def _range(self, copy: Copy, start: int, end: int) -> obstore.Bytes:
        with explained(self.url, may_be_gone=True):
            piece = obstore.get_range(self._store, copy.path, start=start, end=end)
        if len(piece) != end - start:
            raise StorageUnavailable(
                f"{self.url} gave {len(piece)} bytes of {copy.path}, {end - start} were asked for"
            )
        return piece

    def _delete(self, copies: list[Copy]) -> None:
        if copies:
            with explained(self.url):
                obstore.delete(self._store, [copy.path for copy in copies])


def _note(tenant: Tenant) -> str:
    return f"{NOTES}/{tenant.id}"


def _new_path(digest: bytes) -> str:
    return f"{digest.hex()}/{secrets.token_hex(8)}"


def _digest_in(path: str) -> bytes | None:
    """The digest of the blob that an object is a copy of; None for an object of someone else."""
    name, _, copy = path.partition("/")
    try:
        digest = bytes.fromhex(name)
    except ValueError:
        return None
    return digest if len(digest) == DIGEST_BYTES and copy and "/" not in copy else None


def _copy(item: Any) -> Copy:
    modified: datetime = item["last_modified"]
    seconds = modified.timestamp()
    # Rounded up where the store tells seconds only: an object must not seem older than it is.
    touched_at = (
        int(seconds * 1_000_000) if modified.microsecond else (int(seconds) + 1) * 1_000_000
    )
    return Copy(touched_at, item["size"], item["path"])


def _now() -> int:
    return time.time_ns() // 1000
