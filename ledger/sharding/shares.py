"""Who records which bytes of a tensor, so that each is recorded once and digests come out as one
process's.

A tensor's digest is taken over chunks of 256 KiB. A chunk is recorded by a rank in whose range it
begins; where several have the same range, replicas, they take a share of its chunks each. What the
last chunk of a range lacks comes from the ranks that follow.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.tensors.digest import CHUNK_BYTES

Range = tuple[int, int]
"""Bytes [start, stop) of a tensor."""


class SentBytes(NamedTuple):
    """Bytes [start, stop) of a tensor that a rank sends to another."""

    name: str
    source: int
    target: int
    start: int
    stop: int


def replicas_of(ranges: Sequence[Range], rank: int) -> list[int]:
    """The ranks that have the same range as this one, itself among them."""
    return [other for other, range_ in enumerate(ranges) if range_ == ranges[rank]]


def owned(ranges: Sequence[Range], rank: int, size: int) -> Range:
    """The bytes that a rank records of a tensor of `size` bytes: whole chunks, but for the end."""
    start, stop = ranges[rank]
    first, last = -(-start // CHUNK_BYTES), -(-stop // CHUNK_BYTES)
    same = replicas_of(ranges, rank)
    count, place = last - first, same.index(rank)
    begin = first + count * place // len(same)
    end = first + count * (place + 1) // len(same)
    return min(begin * CHUNK_BYTES, size), min(end * CHUNK_BYTES, size)


def pieces(name: str, ranges: Sequence[Range], size: int) -> list[SentBytes]:
    """What ranks lack of the chunks that they record, and who sends it.

    InvalidRequest where the ranges do not cover the tensor.
    """
    _require_cover(name, ranges, size)
    lacking = []
    for target in range(len(ranges)):
        start, stop = owned(ranges, target, size)
        at = max(start, ranges[target][1])
        while start < stop and at < stop:
            source = next(r for r, (low, high) in enumerate(ranges) if low <= at < high)
            end = min(stop, ranges[source][1])
            lacking.append(SentBytes(name, source, target, at, end))
            at = end
    return lacking


def all_pieces(
    layouts: Mapping[str, Sequence[Range]], sizes: Mapping[str, int]
) -> dict[tuple[int, int], list[SentBytes]]:
    """The pieces of all tensors by who sends them to whom."""
    by_pair: dict[tuple[int, int], list[SentBytes]] = {}
    for name, ranges in layouts.items():
        for piece in pieces(name, ranges, sizes[name]):
            by_pair.setdefault((piece.source, piece.target), []).append(piece)
    return by_pair


def _require_cover(name: str, ranges: Sequence[Range], size: int) -> None:
    at = 0
    for start, stop in sorted(set(ranges)):
        if start == stop:
            continue
        if start != at:
            break
        at = stop
    if at != size:
        raise InvalidRequest(
            f"the ranks' parts of tensor {name!r} do not make the whole: {sorted(set(ranges))} of"
            f" {size} bytes",
            param=name,
        )
