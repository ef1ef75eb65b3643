"""Quantiles of many values in few bytes: DDSketch (Masson et al., VLDB 2019), within 1 %.

The bytes are DDSketch's own protobuf message, which its libraries in other languages read too.
"""

import math
from collections.abc import Iterator

import numpy as np
from ddsketch import LogCollapsingLowestDenseDDSketch
from ddsketch.pb import ddsketch_pb2
from ddsketch.pb.proto import DDSketchProto

RELATIVE_ACCURACY = 0.01
_BINS = 2048
_GAMMA = (1 + RELATIVE_ACCURACY) / (1 - RELATIVE_ACCURACY)
_LEAST = 1e-300  # what is nearer to 0 counts as 0
_MOST = 1e300


class Sketch:
    """How often which values occurred; each is known to 1 % of itself."""

    __slots__ = ("_data", "_decoded")

    def __init__(self, data: bytes | None = None) -> None:
        self._data = data
        self._decoded: LogCollapsingLowestDenseDDSketch | None = None

    @classmethod
    def of(cls, values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> "Sketch":
        """A sketch of finite values, [n]; hundreds cost little more than one."""
        sketch = cls()
        zeros = int((np.abs(values) <= _LEAST).sum())
        if zeros:
            sketch.add(0.0, zeros)
        for sign in (1.0, -1.0):
            side = np.minimum(sign * values[sign * values > _LEAST], _MOST)
            keys = np.ceil(np.log(side) / math.log(_GAMMA))
            for key, count in zip(*np.unique(keys, return_counts=True), strict=True):
                sketch.add(sign * 2 / (1 + _GAMMA) * _GAMMA ** float(key), int(count))
        return sketch

    @classmethod
    def decode(cls, data: bytes) -> "Sketch":
        """What `encode` gave, or DDSketch in another language with the same accuracy.

        Read when it is first asked for something: of many rollups few are looked into.
        """
        return cls(data)

    @property
    def _sketch(self) -> LogCollapsingLowestDenseDDSketch:
        if self._decoded is None:
            self._decoded = LogCollapsingLowestDenseDDSketch(RELATIVE_ACCURACY, _BINS)
            if self._data is not None:
                for value, count in _bins(ddsketch_pb2.DDSketch.FromString(self._data)):
                    self._decoded.add(value, float(count))
        return self._decoded

    def encode(self) -> bytes:
        """DDSketch's protobuf message, with the bins that are not empty."""
        message = ddsketch_pb2.DDSketch(mapping={"gamma": _GAMMA})
        for key, sign, count in _keys(self._message()):
            if sign == 0:
                message.zeroCount = count
            else:
                store = message.positiveValues if sign > 0 else message.negativeValues
                store.binCounts[key] = count
        return bytes(message.SerializeToString(deterministic=True))

    @property
    def count(self) -> int:
        """How many values it has seen."""
        return int(self._sketch.count)

    def add(self, value: float, times: int = 1) -> None:
        """Count a finite value."""
        self._sketch.add(value, float(times))

    def merge(self, other: "Sketch") -> None:
        """Count what the other has seen."""
        self._sketch.merge(other._sketch)

    def quantile(self, fraction: float) -> float | None:
        """The value that this fraction of all values is at or below; None when there is none."""
        value = self._sketch.get_quantile_value(fraction)
        return None if value is None else float(value)

    def over(self, limit: float) -> int:
        """How many values are above `limit`, those within 1 % of it on either side of it."""
        return sum(count for value, count in self.bins() if value > limit)

    def bins(self) -> Iterator[tuple[float, int]]:
        """Representative values and how often they occurred, in no order."""
        return _bins(self._message())

    def _message(self) -> ddsketch_pb2.DDSketch:
        return DDSketchProto.to_proto(self._sketch)  # type: ignore[no-untyped-call]


def _bins(message: ddsketch_pb2.DDSketch) -> Iterator[tuple[float, int]]:
    for key, sign, count in _keys(message):
        yield (sign * 2 / (1 + _GAMMA) * _GAMMA**key if sign else 0.0), count


def _keys(message: ddsketch_pb2.DDSketch) -> Iterator[tuple[int, int, int]]:
    """Key, sign and count of every bin that is not empty."""
    if message.zeroCount:
        yield 0, 0, int(message.zeroCount)
    for sign, store in ((1, message.positiveValues), (-1, message.negativeValues)):
        dense = enumerate(store.contiguousBinCounts, store.contiguousBinIndexOffset)
        for key, count in (*dense, *sorted(store.binCounts.items())):
            if count:
                yield key, sign, int(count)
