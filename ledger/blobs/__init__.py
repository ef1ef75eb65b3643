"""Where bytes live: content-addressed pieces of payload and of snapshots.

The contract
------------
- A blob's address is `tensors.digest.content_digest` of its bytes, so a tensor's blob is addressed
  by the tensor's digest and an unchanged tensor is stored once for all snapshots.
- Putting is idempotent; a blob is durable when `put` returns, and visible whole or not at all. What
  is read is checked against its address.
- Blobs outside of the database are put before the event that refers to them is appended. One whose
  event never came is an orphan. Another writer may find it and refer to it: it then has touched it,
  so `delete_unreferenced` leaves it alone, at whatever moment the two meet.
- No clock and no pause decides what is safe. Whoever refers to a blob makes sure that it is there
  and touches it in one piece with what refers to it (the same transaction, or while it is `held`);
  a collector notes when a blob was touched, then looks what refers to it, and deletes it only if it
  has not been touched since. A grace period of MIN_GRACE_S keeps it from what is on the way.
- Failures are StorageUnavailable (passes by itself), StorageFull, or StorageError (credentials,
  a missing bucket, a read-only folder); after each of them nothing was stored that is visible.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.errors import CorruptLedger

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]

MIN_GRACE_S = 3600.0


class Stored(NamedTuple):
    """A blob as a listing shows it: `size` in bytes, `touched_at` in UTC microseconds."""

    digest: bytes
    size: int
    touched_at: int


class BlobStore(Protocol):
    """Content-addressed bytes."""

    def put(self, digest: bytes, data: Buffer) -> None:
        """Store `data` under its digest; a blob that exists is touched, not written again."""

    def rewrite(self, digest: bytes, data: Buffer) -> None:
        """Store `data` in place of what is stored under its digest, which turned out damaged."""

    def get(self, digest: bytes) -> bytes:
        """The bytes of a blob; CorruptLedger when it is missing or does not match."""

    def read_into(self, digest: bytes, out: NDArray[np.uint8], *, check: bool = True) -> None:
        """Fill `out`, whose length is the blob's; CorruptLedger as for `get`.

        Without `check` the bytes are as they are stored, for who checks what comes of them.
        """

    def read_range(self, digest: bytes, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of a blob, as they are stored: a part cannot be checked against
        the digest, so who asks checks what comes of it. CorruptLedger when the blob is missing or
        ends before `stop`.
        """

    def missing(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the digests that are not stored; those that are get touched."""

    def stored(self) -> Iterator[Stored]:
        """Every blob, read in pages; those put or deleted meanwhile may be listed or not."""

    def held(self, digests: Iterable[bytes]) -> AbstractContextManager[set[bytes]]:
        """While the block runs, no collector deletes those of the blobs that are stored.

        They get touched; gives those that are not stored. A store that has no such lock makes sure
        that they are young at the beginning.
        """

    def now(self) -> int:
        """The time by the clock that says when a blob was touched, in UTC microseconds."""

    def delete_unreferenced(
        self, digest: bytes, older_than: int, *, last_touched: int | None = None
    ) -> bool:
        """Delete a blob unless it was touched at or after `older_than` (UTC microseconds), or at
        another time than `last_touched`, as the listing told it.

        Whether it did. The time is looked at within the deletion itself, so that a writer who
        touches the blob meanwhile either saves it or is told that it is missing. The caller vouches
        that nothing refers to it and that `older_than` is at least MIN_GRACE_S ago.
        """

    def sweep(self, older_than: int) -> int:
        """Delete what is not a blob and was left before `older_than`; how many there were.

        Such are the files of writers that were killed, and copies that a later one replaces.
        """


def as_view(data: Buffer) -> memoryview:
    """The bytes of a buffer, one-dimensional, without a copy."""
    if isinstance(data, np.ndarray):
        return data.reshape(-1).view(np.uint8).data
    return memoryview(data).cast("B")


def absent(digest: bytes) -> CorruptLedger:
    """The error for a blob that is not there."""
    return CorruptLedger(f"blob {digest.hex()} is missing")


def damaged(digest: bytes) -> CorruptLedger:
    """The error for a blob with other bytes than its digest says."""
    return CorruptLedger(f"blob {digest.hex()} does not match its digest")


def cut_short(digest: bytes, stop: int) -> CorruptLedger:
    """The error for a blob that ends before what was asked of it."""
    return CorruptLedger(f"blob {digest.hex()} ends before byte {stop}")


def require_size(digest: bytes, size: int, expected: int) -> None:
    """Raise CorruptLedger when a blob does not have the length of the buffer it is read into."""
    if size != expected:
        raise CorruptLedger(f"blob {digest.hex()} has {size} bytes, {expected} are expected")
