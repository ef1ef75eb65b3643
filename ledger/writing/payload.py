"""Writing an event's payload: small ones inline, large ones as blobs, huge ones early.

A payload is the frames of the changed tensors, one after the other. It is held in memory only up
to a bound: beyond that, finished pieces are put into the blob store before the event exists. If
the event never comes, such a piece is an orphan that `gc` finds; it is never visible.
"""

from weightledger.ledger.blobs import BlobStore, Buffer
from weightledger.ledger.events import INLINE_BYTES, BlobRef
from weightledger.ledger.tensors.digest import content_digest

SPILL_BYTES = 32 * 1024 * 1024


class PayloadWriter:
    """Collects the frames of one event."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._refs: list[BlobRef] = []
        self._pieces: list[bytes] = []
        self._pending = 0

    def write(self, frames: bytes) -> int:
        """Append encoded frames; returns their size in bytes."""
        self._pieces.append(frames)
        self._pending += len(frames)
        if self._pending >= SPILL_BYTES:
            data, ref = self._take()
            self._blobs.put(ref.digest, data)
            self._refs.append(ref)
        return len(frames)

    def finish(
        self, *, inline: bool = True
    ) -> tuple[tuple[BlobRef, ...], bytes | None, dict[bytes, Buffer]]:
        """What the event refers to, and the bytes that have to be stored with it: those of a small
        payload, which go inline, or blobs. Call once, when every tensor is written.

        Without `inline` what is small is a blob too.
        """
        if not self._pending:
            return tuple(self._refs), None, {}
        data, ref = self._take()
        if inline and not self._refs and ref.size <= INLINE_BYTES:
            return (ref,), data, {}
        return (*self._refs, ref), None, {ref.digest: data}

    def _take(self) -> tuple[bytes, BlobRef]:
        data = b"".join(self._pieces)
        self._pieces, self._pending = [], 0
        return data, BlobRef(content_digest(data), len(data))
