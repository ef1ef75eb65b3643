"""Where the parts of tensors lie in the payload of an event that several ranks wrote.

The payload is what rank 0 wrote, then what rank 1 wrote, and so on, and then an index. What a rank
wrote are its frames of each changed tensor, in the order of the header's list. The index says for
each tensor, in that order, from which ranks its frames come: for each rank, in the order in which
they make the tensor, the rank's number and how many bytes of frames that are, both as little-endian
u64. A rank that wrote none of a tensor is there with 0 bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.errors import CorruptLedger

_NUMBER = np.dtype("<u8")


@dataclass(frozen=True, slots=True)
class Shards:
    """That `ranks` wrote an event's payload together, with an index of `index_bytes` at its end."""

    ranks: int
    index_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"ranks": self.ranks, "index_bytes": self.index_bytes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(value["ranks"], value["index_bytes"])


@dataclass(frozen=True, slots=True)
class Index:
    """For each tensor and place the rank and its bytes; both have the shape (tensors, ranks)."""

    order: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def read(cls, data: bytes | memoryview, ranks: int, sizes: list[int], total: int) -> Self:
        """The index of a payload of `total` bytes, whose tensors have parts of these sizes.

        CorruptLedger where they do not fit together.
        """
        if ranks < 1 or len(data) != len(sizes) * ranks * 2 * _NUMBER.itemsize:
            raise CorruptLedger("the index of what its ranks wrote has another length")
        pairs = np.frombuffer(data, _NUMBER).reshape(len(sizes), ranks, 2)
        if int(pairs.max(initial=0)) > total:
            raise CorruptLedger("the index of what its ranks wrote goes beyond its payload")
        order, lengths = pairs[..., 0].astype(np.int64), pairs[..., 1].astype(np.int64)
        if not np.array_equal(np.sort(order), np.tile(np.arange(ranks), (len(sizes), 1))):
            raise CorruptLedger("the index of what its ranks wrote does not name every rank once")
        if lengths.sum(axis=1).tolist() != sizes or lengths.sum() + len(data) != total:
            raise CorruptLedger("the index of what its ranks wrote does not fit its payload")
        return cls(order, lengths)

    def written(self) -> bytes:
        """The index as it is stored."""
        return np.stack((self.order, self.lengths), axis=-1).astype(_NUMBER).tobytes()

    def spans(self) -> list[list[tuple[int, int]]]:
        """For each tensor the [start, stop) bytes of the payload that are its frames, in order."""
        by_rank = np.empty_like(self.lengths)
        np.put_along_axis(by_rank, self.order, self.lengths, axis=1)
        # Where each rank's bytes begin, and within them each tensor's.
        begins = np.concatenate(([0], np.cumsum(by_rank.sum(axis=0))[:-1]))
        starts = begins + np.cumsum(by_rank, axis=0) - by_rank
        starts = np.take_along_axis(starts, self.order, axis=1)
        stops = starts + self.lengths
        return [
            list(zip(start, stop, strict=True))
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
        ]


def shards_of(body: Mapping[str, Any]) -> Shards | None:
    """Whether several ranks wrote an event's payload."""
    told = body.get("shards")
    return None if told is None else Shards.from_json(told)
