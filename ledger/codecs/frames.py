"""One tensor's delta: frames of up to 2^20 lanes, so that memory stays bounded at any size.

A frame is

    u8   length of the codec id
    …    codec id, ASCII
    u32  lanes in the frame, 1 to 2^20             (little-endian)
    u32  size of the encoded delta in bytes
    …    the encoded delta

and frames follow each other from the tensor's first lane to its last, without a gap. A tensor
without lanes has no frames. Whether differences are ordered, and the lane dtype, follow from the
tensor's dtype and are not repeated here.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs.delta import TILE_LANES as TILE_LANES
from weightledger.ledger.codecs.delta import Delta, apply, compare, equal, window
from weightledger.ledger.codecs.registry import CODECS, Codec, get_codec
from weightledger.ledger.codecs.several import says
from weightledger.ledger.codecs.streams import Reader, u32
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.tensors.digest import CHUNK_BYTES, touched_chunks
from weightledger.ledger.tensors.spec import Lanes

# Between these shares of changed lanes either codec may be smaller; both are tried on samples.
SPARSE_BELOW, _DENSE_ABOVE = 0.3, 0.9
# At equal size dense frames are read faster.
DENSE_BONUS = 0.98
_SAMPLE_LANES, _SAMPLES = 1 << 14, 4
WHOLE_SAMPLE = _SAMPLES * _SAMPLE_LANES
"""Up to so many lanes the sample is all of them."""


def tiles(count: int) -> Iterator[tuple[int, int]]:
    """The (start, stop) lanes of each frame of a tensor of `count` lanes."""
    for start in range(0, count, TILE_LANES):
        yield start, min(start + TILE_LANES, count)


def encode_frame(delta: Delta, codec_id: str | None = None) -> bytes:
    """The frame of `delta`, written by the codec that makes it smallest or by the one given.

    What was written is decoded again and compared; raises CorruptLedger if it differs, so that
    a faulty codec or machine is noticed before anything is recorded.
    """
    if not 0 < delta.count <= TILE_LANES:
        raise ValueError(f"a frame has 1 to {TILE_LANES} lanes, not {delta.count}")
    codec, data = (get_codec(codec_id), None) if codec_id else _smallest(delta)
    if data is None:
        data = codec.encode(delta)
    if not says(codec.id, data, delta) and not equal(
        codec.decode(data, delta.count, delta.difference.dtype), delta
    ):
        raise CorruptLedger(f"codec {codec.id!r} did not reproduce the difference it was given")
    return framed(codec.id, delta.count, data)


def framed(codec_id: str, lanes: int, data: bytes | memoryview) -> bytes:
    """The frame of so many lanes with what a codec wrote."""
    name = codec_id.encode("ascii")
    return b"".join((bytes([len(name)]), name, u32(lanes), u32(len(data)), data))


def encode_tensor(before: Lanes, after: Lanes, ordered: bool) -> bytes:
    """The frames of a whole tensor, found by comparing every lane."""
    return b"".join(
        [
            encode_frame(compare(before[start:stop], after[start:stop], ordered))
            for start, stop in tiles(len(before))
        ]
    )


def apply_frames(
    lanes: Lanes,
    data: bytes | memoryview,
    ordered: bool,
    *,
    undo: bool = False,
    written: set[int] | None = None,
) -> None:
    """Apply all frames to a whole tensor's lanes in place, forward or with `undo` backward.

    The numbers of the digest chunks that are written are added to `written`, for `digest.rehash`.
    Raises CorruptLedger if a frame cannot be read or the frames do not cover the tensor exactly;
    the lanes then are as they were.
    """
    frames = frames_of(data, len(lanes))
    done = 0
    try:
        for start, delta in _read(frames, lanes.dtype):
            apply(lanes[start : start + delta.count], delta, ordered, undo=undo)
            done += 1
            if written is not None:
                written.update(written_chunks(start, delta).tolist())
    except CorruptLedger:
        # Deltas are reversible, so what was written is taken back without a copy of the tensor.
        for start, delta in _read(frames[:done], lanes.dtype):
            apply(lanes[start : start + delta.count], delta, ordered, undo=not undo)
        raise


def written_chunks(start: int, delta: Delta) -> NDArray[np.intp]:
    """Ascending numbers of the digest chunks that a frame beginning at lane `start` writes."""
    itemsize = delta.difference.itemsize
    first, lead = divmod(start, CHUNK_BYTES // itemsize)
    if delta.indices is None:
        last = (start + delta.count - 1) * itemsize // CHUNK_BYTES
        return np.arange(first, last + 1)
    return touched_chunks(delta.indices + lead, delta.count + lead, itemsize) + first


class Frame(NamedTuple):
    """One frame of a tensor's delta, as it is written."""

    codec: Codec
    lanes: int
    encoded: memoryview

    def delta(self, dtype: np.dtype[np.unsignedinteger]) -> Delta:
        """What it says of lanes of `dtype`; raises CorruptLedger."""
        return self.codec.decode(self.encoded, self.lanes, dtype)


def frames_of(data: bytes | memoryview, count: int) -> list[Frame]:
    """The frames of a tensor of `count` lanes; CorruptLedger unless they cover it exactly."""
    frames = list(_split(data))
    covered = sum(frame.lanes for frame in frames)
    if covered != count:
        raise CorruptLedger(f"the delta covers {covered} lanes of a tensor that has {count}")
    return frames


def _read(
    frames: Iterable[Frame], dtype: np.dtype[np.unsignedinteger]
) -> Iterator[tuple[int, Delta]]:
    """The (start lane, delta) of each frame, decoded one at a time."""
    start = 0
    for frame in frames:
        yield start, frame.delta(dtype)
        start += frame.lanes


def _split(data: bytes | memoryview) -> Iterator[Frame]:
    reader = Reader(data)
    while reader.left:
        try:
            codec = get_codec(bytes(reader.take(reader.u8())).decode("ascii"))
        except UnicodeDecodeError as error:
            raise CorruptLedger("a frame's codec id is not ASCII") from error
        count = reader.u32()
        if not 0 < count <= TILE_LANES:
            raise CorruptLedger(f"a frame has 1 to {TILE_LANES} lanes, not {count}")
        yield Frame(codec, count, reader.take(reader.u32()))


def _smallest(delta: Delta) -> tuple[Codec, bytes | None]:
    """The codec to write a delta with; and what it writes, where that is known by then."""
    sparse, dense = CODECS["sparse.1"], CODECS["dense.1"]
    if delta.indices is None:
        return dense, None
    if not delta.changed:
        return CODECS["none.1"], None
    share = delta.changed / delta.count
    if share < SPARSE_BELOW:
        return sparse, None
    if share > _DENSE_ABOVE:
        return dense, None
    parts = _samples(delta)
    by_sparse = [sparse.encode(part) for part in parts]
    by_dense = [dense.encode(part) for part in parts]
    is_dense = DENSE_BONUS * sum(map(len, by_dense)) <= sum(map(len, by_sparse))
    whole = by_dense if is_dense else by_sparse
    return dense if is_dense else sparse, whole[0] if parts[0] is delta else None


def _samples(delta: Delta) -> list[Delta]:
    if delta.count <= WHOLE_SAMPLE:
        return [delta]
    starts: list[Any] = np.linspace(0, delta.count - _SAMPLE_LANES, _SAMPLES, dtype=int).tolist()
    return [window(delta, start, start + _SAMPLE_LANES) for start in starts]
