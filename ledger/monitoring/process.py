"""Memory of this process."""

import os
from functools import cache

import psutil

_MB = 1 << 20


def memory_usage_mb() -> float:
    """Resident memory of this process in MiB."""
    return float(_process(os.getpid()).memory_info().rss) / _MB


@cache
def _process(pid: int) -> psutil.Process:
    """Finding out about a process takes longer than asking for its memory."""
    return psutil.Process(pid)
