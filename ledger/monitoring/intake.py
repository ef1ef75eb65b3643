"""Where requests leave their numbers, in bytes of one buffer: nothing else that costs them time.

A row is packed and appended by one call each, which hands no other thread the turn in between. Who
takes them out gets columns, without having looked at a single row.
"""

import struct
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from weightledger.ledger.monitoring.samples import NOT_SAID, OUTCOMES, Inferences, Outcome

MOST_ARRIVED = 65_536
"""Rows that wait to be taken out; what arrives while it is this many is only counted."""

_ROW: Final = np.dtype(
    [
        ("seq", "<i8"),
        ("latency_ms", "<f8"),
        ("queue_ms", "<f8"),
        ("items", "<i8"),
        ("unit", "<i8"),
        ("outcome", "u1"),
    ]
)
_pack = struct.Struct("<qddqqB").pack
_CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}
_NAN = float("nan")


class Intake:
    """Rows of any thread, taken out by one; `wake` is called for the first of them."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._rows = bytearray()
        self._most = MOST_ARRIVED * _ROW.itemsize
        self._wake = wake
        self.lost = 0

    def record(
        self,
        seq: int,
        latency_ms: float,
        outcome: Outcome = "ok",
        queue_ms: float | None = None,
        items: int | None = None,
        unit: int | None = None,
    ) -> None:
        """Count one inference that ended just now; see `samples.Inference`."""
        rows = self._rows
        size = len(rows)
        if size >= self._most:
            self.lost += 1
            return
        rows += _pack(
            seq,
            latency_ms,
            _NAN if queue_ms is None else queue_ms,
            NOT_SAID if items is None else items,
            NOT_SAID if unit is None else unit,
            _CODES[outcome],
        )
        if not size:
            self._wake()

    def answered(self, seq: int, latency_ms: float) -> None:
        """`record` for what was answered well and says no more of itself, which is quicker."""
        rows = self._rows
        size = len(rows)
        if size >= self._most:
            self.lost += 1
            return
        rows += _pack(seq, latency_ms, _NAN, NOT_SAID, NOT_SAID, 0)
        if not size:
            self._wake()

    def take(self) -> Inferences | None:
        """Everything that arrived, in the order it did; None of nothing."""
        size = len(self._rows)
        if not size:
            return None
        taken = np.frombuffer(self._rows[:size], _ROW)
        del self._rows[:size]
        return Inferences(
            time.time_ns() // 1000,
            taken["seq"],
            taken["latency_ms"],
            taken["outcome"],
            taken["queue_ms"],
            taken["items"],
            taken["unit"],
        )
