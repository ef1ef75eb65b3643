"""Digests of tensors: what makes bit-exactness provable.

The byte format is permanent; anyone can recompute it with plain BLAKE3.

Tensor
    Its bytes (little-endian, C order) are cut into chunks of 256 KiB, the last one shorter.
    Each chunk is hashed with BLAKE3 (32 bytes); the tensor's digest is the BLAKE3 of those
    hashes in order. No bytes: no chunk, so the BLAKE3 of nothing.

Whether live memory is still what it was is asked much more often than what a tensor's digest is.
Checksums (XXH3-128, five times as fast) answer that: they are kept in memory beside the digests,
are never stored, and prove nothing to anybody.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from weightledger.ledger.tensors.side_by_side import side_by_side

CHUNK_BYTES = 256 * 1024
DIGEST_BYTES = 32
CHECKSUM_BYTES = 16

# What stands for a checksum that is not known.
_UNKNOWN = bytes(CHECKSUM_BYTES)

# Chunks hashed by one job of `hash_many`: small enough to share out one large tensor, large
# enough that handing the job over costs nothing.
_JOB_CHUNKS = 16


def chunk_digests(lanes: NDArray[Any]) -> bytearray:
    """The BLAKE3 digests of each 256 KiB of `lanes`, 32 bytes each, in order.

    `lanes` is a contiguous array of any dtype; its bytes are what is hashed.
    """
    if lanes.ndim == 1 and 0 < lanes.nbytes <= CHUNK_BYTES:  # the calls would cost as much again
        return bytearray(blake3(lanes.data.cast("B")).digest())
    return _hash_range(_bytes_of(lanes), 0, lanes.nbytes)


def root(chunks: bytes | bytearray) -> bytes:
    """The digest of the tensor with these chunk digests, 32 bytes."""
    return blake3(chunks).digest()


def content_digest(data: bytes | bytearray | memoryview | NDArray[Any]) -> bytes:
    """The digest of a tensor with these bytes, 32 bytes."""
    if isinstance(data, np.ndarray):
        if data.ndim == 1 and 0 < data.nbytes <= CHUNK_BYTES and data.flags.c_contiguous:
            return blake3(blake3(data.data.cast("B")).digest()).digest()
        view = _bytes_of(data)
    else:
        if type(data) is bytes and 0 < len(data) <= CHUNK_BYTES:
            return blake3(blake3(data).digest()).digest()
        view = memoryview(data).cast("B")
    return root(_hash_range(view, 0, len(view)))


def content_digests(contents: Iterable[bytes | memoryview]) -> list[bytes]:
    """`content_digest` of each; making two hashers for each would take a fifth of the time."""
    chunk, whole = blake3(), blake3()
    digests: list[bytes] = []
    for data in contents:
        if not 0 < len(data) <= CHUNK_BYTES:
            digests.append(content_digest(data))
            continue
        chunk.update(data)
        whole.update(chunk.digest())
        digests.append(whole.digest())
        chunk.reset()
        whole.reset()
    return digests


def hash_many(tensors: Sequence[NDArray[Any]], pool: Executor) -> list[bytearray]:
    """`chunk_digests` of each of `tensors`, shared out between the caller and a thread of `pool`.

    BLAKE3 works without the GIL, so two threads take half the time.
    """
    size = _JOB_CHUNKS * CHUNK_BYTES
    jobs = [
        (_bytes_of(lanes), at, at + size)
        for lanes in tensors
        for at in range(0, lanes.nbytes, size)
    ]
    hashed = side_by_side(lambda job: _hash_range(*job), jobs, pool)
    return [
        bytearray().join([next(hashed) for _ in range(0, lanes.nbytes, size)]) for lanes in tensors
    ]


def touched_chunks(indices: NDArray[Any], count: int, itemsize: int) -> NDArray[np.intp]:
    """Ascending numbers of the chunks that hold the lanes `indices`.

    `indices` are ascending lane positions in a tensor of `count` lanes of `itemsize` bytes.
    """
    per_chunk = CHUNK_BYTES // itemsize
    if len(indices) and indices[0] // per_chunk == indices[-1] // per_chunk:
        return np.array([indices[0] // per_chunk], np.intp)
    starts = np.searchsorted(indices, np.arange(0, count, per_chunk, dtype=indices.dtype))
    return np.flatnonzero(np.diff(starts, append=len(indices)))


def rehash(chunks: bytearray, lanes: NDArray[Any], numbers: Iterable[int]) -> None:
    """Bring `chunks` up to date in place after the chunks with these numbers were written."""
    view = _bytes_of(lanes)
    for number in numbers:
        at = number * CHUNK_BYTES
        fresh = blake3(view[at : at + CHUNK_BYTES]).digest()
        chunks[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES] = fresh


def no_checksums(chunks: bytes | bytearray) -> bytearray:
    """Checksums of as many chunks as these digests are of, none of them known."""
    return bytearray(len(chunks) // DIGEST_BYTES * CHECKSUM_BYTES)


def unchanged(
    chunks: bytes | bytearray,
    checksums: bytes | bytearray,
    lanes: NDArray[Any],
    numbers: Iterable[int],
    now: NDArray[np.uint8] | None = None,
) -> bool:
    """Whether the chunks with these numbers are what they were.

    By their checksum, `now` [chunks, 16] where that is worked out already, and by their digest
    where it is not known what it was. A checksum notices whatever happens by accident; bytes that
    were chosen to have the same one are not noticed.
    """
    view = _bytes_of(lanes)
    for number in numbers:
        data = view[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        known = checksums[number * CHECKSUM_BYTES : (number + 1) * CHECKSUM_BYTES]
        if known != _UNKNOWN:
            own = xxh3_128_digest(data) if now is None else now[number].tobytes()
            if own != known:
                return False
        elif blake3(data).digest() != chunks[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]:
            return False
    return True


def is_unchanged(
    chunks: bytes | bytearray,
    checksums: bytearray | None,
    lanes: NDArray[Any],
    now: bytes | None = None,
) -> bool:
    """`unchanged` of all of a tensor that is one chunk, flat and contiguous; its checksum is `now`
    where that is worked out already."""
    if checksums is None or checksums == _UNKNOWN:
        return chunk_digests(lanes) == chunks
    return (now or xxh3_128_digest(lanes.data)) == checksums


def checksum_of(lanes: NDArray[Any]) -> bytes:
    """The checksum of all of a tensor that is one chunk, flat and contiguous."""
    return xxh3_128_digest(lanes.data)


def checksum(
    checksums: bytearray,
    lanes: NDArray[Any],
    numbers: Iterable[int],
    now: NDArray[np.uint8] | None = None,
) -> None:
    """Bring checksums up to date in place after the chunks with these numbers were written.

    `now` [chunks, 16] has them where they are worked out already.
    """
    view = _bytes_of(lanes)
    for number in numbers:
        data = view[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        own = xxh3_128_digest(data) if now is None else now[number].tobytes()
        checksums[number * CHECKSUM_BYTES : (number + 1) * CHECKSUM_BYTES] = own


def _bytes_of(lanes: NDArray[Any]) -> memoryview:
    return lanes.reshape(-1).view(np.uint8).data


def _hash_range(view: memoryview, start: int, stop: int) -> bytearray:
    stop = min(stop, len(view))
    if start == 0 < stop == len(view) <= CHUNK_BYTES:
        return bytearray(blake3(view).digest())
    return bytearray().join(
        [
            blake3(view[at : min(at + CHUNK_BYTES, stop)]).digest()
            for at in range(start, stop, CHUNK_BYTES)
        ]
    )
