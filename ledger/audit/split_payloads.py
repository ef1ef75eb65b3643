"""Payloads that several shares of a verification read: together they check every byte once.

A payload's digest is taken over the digests of its chunks of 256 KiB. The share whose part a chunk
begins in reads all of it, so each share but the first reads at most a chunk more of each event than
its tensors take, and whoever has the digests of all chunks has the payload's.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.parallel.shares import Share
from weightledger.ledger.store.payloads import ByteSpan, Portion, joined
from weightledger.ledger.tensors.digest import CHUNK_BYTES, DIGEST_BYTES, chunk_digests, root


class Chunks(NamedTuple):
    """The digests of some chunks of a blob of a payload, from the chunk `first` on."""

    seq: int
    digest: bytes
    size: int
    first: int
    digests: bytes

    def to_json(self) -> list[Any]:
        return [self.seq, self.digest.hex(), self.size, self.first, self.digests.hex()]

    @classmethod
    def from_json(cls, told: list[Any]) -> "Chunks":
        seq, digest, size, first, digests = told
        return cls(seq, bytes.fromhex(digest), size, first, bytes.fromhex(digests))


def spans_of_share(event: Event, share: Share) -> list[ByteSpan]:
    """What a share reads of an event's payload: its tensors' parts, and the chunks it checks."""
    own = _own(event, share)
    chunks = [run.span for run in _runs(event, own)]
    return joined(sorted([*own, *chunks]))


def checked_chunks(event: Event, share: Share, portion: Portion) -> list[Chunks]:
    """The digests of the chunks that begin in a share's part; of a payload that it has alone, none.

    CorruptLedger where that one is not the recorded one. A portion that is whole was checked.
    """
    if portion.is_whole:
        return []
    told = []
    for run in _runs(event, _own(event, share)):
        data = portion.part(run.span.start, run.span.stop - run.span.start)
        digests = bytes(chunk_digests(np.frombuffer(data, np.uint8)))
        if len(data) == run.size:
            _require(event.seq, run.digest, digests)
        else:
            told.append(Chunks(event.seq, run.digest, run.size, run.first, digests))
    return told


def check_together(told: Iterable[Chunks]) -> None:
    """Raise CorruptLedger for the first blob whose chunks, of all shares, are not the recorded."""
    blobs: defaultdict[tuple[int, bytes, int], list[Chunks]] = defaultdict(list)
    for one in set(told):  # a payload is read again where a rollback undoes its event
        blobs[one.seq, one.digest, one.size].append(one)
    for (seq, digest, size), parts in sorted(blobs.items()):
        digests = b"".join(part.digests for part in sorted(parts, key=lambda part: part.first))
        if len(digests) != -(-size // CHUNK_BYTES) * DIGEST_BYTES:
            raise CorruptLedger(f"not every chunk of the payload of event {seq} was read", seq=seq)
        _require(seq, digest, digests)


class _Run(NamedTuple):
    """Chunks of one blob that follow each other: where they lie in the payload."""

    digest: bytes
    size: int
    first: int
    span: ByteSpan


def _own(event: Event, share: Share) -> list[ByteSpan]:
    """The parts of a share's tensors; what follows the last tensor's is the first share's."""
    at, spans = 0, []
    for change in event.changes:
        if change.name in share:
            spans.append(ByteSpan(at, at + change.size))
        at += change.size
    if share.is_first:
        spans.append(ByteSpan(at, event.payload_size))
    return joined(spans)


def _runs(event: Event, own: Iterable[ByteSpan]) -> Iterator[_Run]:
    """The chunks that begin in these spans."""
    spans = list(own)
    start = 0
    for ref in event.payload:
        count = -(-ref.size // CHUNK_BYTES)
        for span in spans:
            first = max(-(-(span.start - start) // CHUNK_BYTES), 0)
            stop = min(-(-(span.stop - start) // CHUNK_BYTES), count)
            if first < stop:
                end = min(stop * CHUNK_BYTES, ref.size)
                within = ByteSpan(start + first * CHUNK_BYTES, start + end)
                yield _Run(ref.digest, ref.size, first, within)
        start += ref.size


def _require(seq: int, digest: bytes, digests: bytes) -> None:
    if root(digests) != digest:
        raise CorruptLedger(
            f"payload of event {seq}: blob {digest.hex()} does not match its digest", seq=seq
        )
