"""Which coding of a delta is smallest: ours against pcodec, and our choice against our best.

    python -m benchmarks.codec_choice

One update of each workload of `benchmarks.storage`, cut into frames as the ledger cuts it. pcodec
is given the same numbers as our planes: the gaps between changed positions and the differences,
as signed integers. Everything is decoded again and compared.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pcodec
from numpy.typing import NDArray
from pcodec import standalone

from benchmarks.measure import Report, interleaved
from benchmarks.storage.exact import copied
from benchmarks.storage.limits import deltas_between
from benchmarks.storage.workloads import WORKLOADS, Workload
from weightledger.ledger.codecs import CODECS, Codec, Delta, encode_frame, equal, get_codec, tiles
from weightledger.ledger.codecs.delta import changed_lanes, window

Run: TypeAlias = Callable[[int], object]

MB = 1_000_000
_FRAMES = 16
_ROUNDS = 3
_LEVELS = (4, 8)
_MOST_EXCESS = 3  # per cent


class Pcodec:
    """pcodec's standalone format for the differences and, unless all changed, the gaps."""

    def __init__(self, level: int) -> None:
        self._config = pcodec.ChunkConfig(compression_level=level)

    def encode(self, delta: Delta) -> list[bytes]:
        signed = delta.difference.view(f"i{delta.difference.itemsize}")
        parts = [signed]
        if delta.indices is not None:
            parts.append(np.diff(delta.indices, prepend=np.int32(0)).view(np.uint32))
        return [self._compress(part) for part in parts]

    def decode(self, data: Sequence[bytes], like: Delta) -> Delta:
        difference, *gaps = [standalone.simple_decompress(part) for part in data]
        indices = np.cumsum(gaps[0]).astype(np.int32) if gaps else None
        return Delta(like.count, indices, difference.view(like.difference.dtype))

    def _compress(self, part: NDArray[np.integer[Any]]) -> bytes:
        packed: bytes = standalone.simple_compress(np.ascontiguousarray(part), self._config)
        return packed


def frames(workload: Workload) -> list[Delta]:
    """Frames of one update that change something, from all over the model."""
    before = copied(workload.state)
    workload.step()
    found = [
        window(delta, start, stop)
        for delta in deltas_between(before, workload.state)
        if delta.changed
        for start, stop in tiles(delta.count)
    ]
    return found[:: -(-len(found) // _FRAMES)]


def compare_codecs(report: Report, workload: Workload) -> None:
    """Add the rows of one workload: sizes and speeds, and what choosing by samples costs."""
    deltas = frames(workload)
    raw = sum(delta.count * delta.difference.itemsize for delta in deltas)
    codecs = [_chosen(delta) for delta in deltas]

    def encode(_: int) -> list[bytes]:
        return [codec.encode(delta) for codec, delta in zip(codecs, deltas, strict=True)]

    written = encode(0)

    def decode(_: int) -> list[Delta]:
        return [
            codec.decode(data, delta.count, delta.difference.dtype)
            for codec, data, delta in zip(codecs, written, deltas, strict=True)
        ]

    runs: dict[str, tuple[Run, Run]] = {"ours": (encode, decode)}
    _require_equal(decode(0), deltas, "ours")
    sizes = {"ours": sum(map(len, written))}
    for level in _LEVELS:
        what = f"pcodec level {level}"
        runs[what], sizes[what] = _pcodec(Pcodec(level), deltas, what)
    medians = interleaved(
        _ROUNDS, **{f"{what} {n}": run for what, pair in runs.items() for n, run in enumerate(pair)}
    )
    for what, size in sizes.items():
        others = what != "ours"
        ratio = size / sizes["ours"] if others else None
        report.add(what, 100 * size / raw, "% of the tensors", ratio=ratio, of="ours")
        for n, verb in enumerate(("encode", "decode")):
            took = medians[f"{what} {n}"]
            ratio = took / medians[f"ours {n}"] if others else None
            report.add(f"  {verb}", raw / took / MB, "MB of tensor/s", ratio=ratio, of="time, ours")
    _choice(report, deltas, codecs)


def _pcodec(codec: Pcodec, deltas: Sequence[Delta], what: str) -> tuple[tuple[Run, Run], int]:
    """What encodes and decodes, and the encoded size in bytes; what comes back is compared."""
    packed = [codec.encode(delta) for delta in deltas]

    def encode(_: int) -> None:
        for delta in deltas:
            codec.encode(delta)

    def decode(_: int) -> None:
        for data, delta in zip(packed, deltas, strict=True):
            codec.decode(data, delta)

    back = [codec.decode(data, delta) for data, delta in zip(packed, deltas, strict=True)]
    _require_equal(back, deltas, what)
    return (encode, decode), sum(len(part) for parts in packed for part in parts)


def _choice(report: Report, deltas: Sequence[Delta], codecs: Sequence[Codec]) -> None:
    """Every codec on every frame, beside the one that was chosen for it."""
    used = Counter(codec.id for codec in codecs)
    sizes = [_every(delta) for delta in deltas]
    best = sum(min(each.values()) for each in sizes)
    chosen = sum(each[codec.id] for each, codec in zip(sizes, codecs, strict=True))
    for codec_id in CODECS:
        tried = [each[codec_id] for each in sizes if codec_id in each]
        if len(tried) == len(deltas):
            what = f"  all by {codec_id}, chosen for {used[codec_id]} of {len(deltas)} frames"
            report.add(what, sum(tried) / best, "× the best")
    report.add(
        "our choice above the best codec of each frame",
        100 * (chosen / best - 1),
        "%",
        goal=f"≤ {_MOST_EXCESS:g} %",
        ok=100 * (chosen / best - 1) <= _MOST_EXCESS,
    )


def _every(delta: Delta) -> dict[str, int]:
    """Bytes by each codec; the one for unchanged frames can write only those."""
    return {
        codec_id: len(codec.encode(delta))
        for codec_id, codec in CODECS.items()
        if codec_id != "none.1" or not changed_lanes(delta).changed
    }


def _chosen(delta: Delta) -> Codec:
    """The codec that the ledger writes a frame with, as the frame's head names it."""
    frame = encode_frame(delta)
    return get_codec(frame[1 : 1 + frame[0]].decode("ascii"))


def _require_equal(decoded: Sequence[Delta], deltas: Sequence[Delta], what: str) -> None:
    if not all(equal(one, other) for one, other in zip(decoded, deltas, strict=True)):
        raise SystemExit(f"{what} decoded another difference than it was given")


def main() -> None:
    report = Report("Codecs on one update of each workload")
    for make in WORKLOADS.values():
        workload = make()
        report.group = workload.title
        compare_codecs(report, workload)
    report.finish("codec_choice")


if __name__ == "__main__":
    main()
