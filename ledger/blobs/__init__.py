"""Where bytes live: content-addressed pieces of payload and of snapshots.

A blob's address is `ledger.digest.content_digest` of its bytes, so a tensor's blob is addressed by
the tensor's digest and an unchanged tensor is stored once for all snapshots. Putting is idempotent;
a blob is durable when `put` returns; what is read is checked against its address.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]


class BlobStore(Protocol):
    """Content-addressed bytes."""

    def put(self, digest: bytes, data: Buffer) -> None:
        """Store `data` under its digest; a blob that exists is touched, not written again."""

    def get(self, digest: bytes) -> bytes:
        """The bytes of a blob; CorruptLedger when it is missing or does not match."""

    def read_into(self, digest: bytes, out: NDArray[np.uint8]) -> None:
        """Fill `out`, whose length is the blob's; CorruptLedger as for `get`."""

    def missing(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the digests that are not stored; those that are get touched."""
