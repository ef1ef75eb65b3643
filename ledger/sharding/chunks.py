"""The chunks that this rank records, taken out of what all ranks have."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from weightledger.ledger.errors import RankLost, ReplicasDiverge
from weightledger.ledger.sharding.parts import Part
from weightledger.ledger.sharding.ranks import Ranks
from weightledger.ledger.sharding.shares import Range, SentBytes, all_pieces, owned, replicas_of
from weightledger.ledger.tensors import memory
from weightledger.ledger.tensors.digest import chunk_digests, root
from weightledger.ledger.tensors.lanes import empty, lanes
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec

T = TypeVar("T")


class ChunkLayout:
    """Which bytes of each tensor every rank has, and so which of them each records.

    Of one set of parts; made by all ranks together. Raises ReplicasDiverge, on all of them, where
    ranks that have the same part have other values.
    """

    def __init__(self, ranks: Ranks, parts: Mapping[str, Part]) -> None:
        self._ranks = ranks
        self.sizes = {name: part.spec.nbytes for name, part in parts.items()}
        mine = []
        for part in parts.values():
            itemsize = part.spec.element.itemsize
            digest = root(chunk_digests(lanes(part.values))) if part.copied else b""
            mine.append([part.start * itemsize, part.stop * itemsize, digest])
        told = ranks.tell_all(mine)
        self.ranges: Mapping[str, list[Range]] = {
            name: [(rank[at][0], rank[at][1]) for rank in told] for at, name in enumerate(parts)
        }
        for at, name in enumerate(parts):
            _require_same(name, self.ranges[name], [rank[at][2] for rank in told])
        self._pieces = all_pieces(self.ranges, self.sizes)

    def owned(self, name: str, rank: int | None = None) -> Range:
        """The bytes that a rank records of a tensor; by default this one."""
        at = self._ranks.rank if rank is None else rank
        return owned(self.ranges[name], at, self.sizes[name])

    def order(self, name: str) -> list[int]:
        """The ranks in the order of the bytes that they record of a tensor."""
        return sorted(range(self._ranks.size), key=lambda rank: (self.owned(name, rank), rank))

    def own_chunks(self, parts: Mapping[str, Part]) -> dict[str, torch.Tensor]:
        """The values of the chunks that this rank records of each tensor, flat, as copies."""
        flat = {name: as_bytes(part.values) for name, part in parts.items()}
        tails = self._tails(flat)
        values: dict[str, torch.Tensor] = {}
        for name, part in parts.items():
            (start, stop), begin = self.owned(name), self._begin(name)
            own = flat[name][start - begin : stop - begin] if start < stop else flat[name][:0]
            # A copy, in memory that an earlier one had: the caller may go on changing its tensor.
            copied = memory.empty((stop - start,), torch.uint8)
            torch.cat([own, *tails.get(name, ())], out=copied)
            values[name] = copied.view(part.values.dtype)
        return values

    def whole(self, spec: TensorSpec, mine: torch.Tensor) -> torch.Tensor | None:
        """A tensor put together on the first rank, of the chunks that each records."""
        first, rank = 0, self._ranks.rank
        ranges = [self.owned(spec.name, other) for other in range(self._ranks.size)]
        incoming = {
            other: stop - start
            for other, (start, stop) in enumerate(ranges)
            if rank == first != other and stop > start
        }
        outgoing = {first: as_bytes(mine)} if rank != first and mine.numel() else {}
        came = self._ranks.swap(outgoing, incoming)
        if rank != first:
            return None
        tensor = empty(spec)
        flat = as_bytes(tensor.view(-1))
        for other, (start, stop) in enumerate(ranges):
            if stop > start:
                flat[start:stop] = as_bytes(mine) if other == first else came[other]
        return tensor

    def _begin(self, name: str) -> int:
        """Where this rank's part of a tensor begins."""
        return self.ranges[name][self._ranks.rank][0]

    def _tails(self, flat: Mapping[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        """What the last chunk that this rank records of a tensor lacks, from the ranks after it."""
        rank = self._ranks.rank

        def cut(piece: SentBytes) -> torch.Tensor:
            begin = self._begin(piece.name)
            return flat[piece.name][piece.start - begin : piece.stop - begin]

        outgoing = {
            target: torch.cat([cut(piece) for piece in pieces])
            for (source, target), pieces in self._pieces.items()
            if source == rank
        }
        incoming = {
            source: sum(piece.stop - piece.start for piece in pieces)
            for (source, target), pieces in self._pieces.items()
            if target == rank
        }
        tails: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for source, data in self._ranks.swap(outgoing, incoming).items():
            at = 0
            for piece in self._pieces[source, rank]:
                size = piece.stop - piece.start
                tails.setdefault(piece.name, []).append((piece.start, data[at : at + size]))
                at += size
        return {
            name: [data for _, data in sorted(some, key=_place)] for name, some in tails.items()
        }


def _require_same(name: str, ranges: Sequence[Range], digests: Sequence[bytes]) -> None:
    """Raise ReplicasDiverge for the first rank that differs from who has the same range."""
    for rank, digest in enumerate(digests):
        first = replicas_of(ranges, rank)[0]
        if digest != digests[first]:
            bare = name.removeprefix(WEIGHTS)
            raise ReplicasDiverge(
                f"rank {rank} holds other values of {bare!r} than rank {first}, which has the same "
                "part of it: nothing was recorded",
                param=bare,
                rank=rank,
            )


def agreed(ranks: Ranks, work: Callable[[], T]) -> T:
    """What comes of work that every rank does; raises on all of them what one of them raised."""
    result: list[T] = []
    agreed_on(ranks, lambda: result.append(work()))
    return result[0]


def agreed_on(ranks: Ranks, work: Callable[[], Any]) -> list[Any]:
    """What came of it on every rank, plain data, by rank; raises as `agreed` does."""
    value, error = None, None
    try:
        value = work()
    except RankLost:
        raise
    except Exception as failed:  # noqa: BLE001  every rank has to hear of it, or would wait
        error = failed
    return ranks.agree(value, error)


def as_bytes(flat: torch.Tensor) -> torch.Tensor:
    """The bytes of a flat tensor, sharing its memory."""
    return torch.from_numpy(lanes(flat).view(np.uint8))


def _place(piece: tuple[int, torch.Tensor]) -> int:
    return piece[0]
