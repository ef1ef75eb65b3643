"""Latency and throughput of real traffic, over a rolling window.

Readers record without a lock: appending to a bounded deque is atomic.
"""

import time
from collections import deque

WINDOW_S = 60.0
_MAX_SAMPLES = 10_000


class Traffic:
    """What the last minute's inferences took."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_MAX_SAMPLES)
        self._since = time.monotonic()

    def record(self, latency_s: float) -> None:
        """Count one finished inference."""
        self._samples.append((time.monotonic(), latency_s))

    def metrics(self) -> dict[str, float]:
        """`latency_ms` (mean) and `throughput` (inferences a second); empty without traffic."""
        now = time.monotonic()
        recent = [sample for sample in self._samples.copy() if now - sample[0] <= WINDOW_S]
        if not recent:
            return {}
        # A full deque covers less than the window, so its own span counts then.
        start = recent[0][0] if len(recent) == _MAX_SAMPLES else max(self._since, now - WINDOW_S)
        return {
            "latency_ms": 1000 * sum(latency for _, latency in recent) / len(recent),
            "throughput": len(recent) / max(now - start, 1e-3),
        }
