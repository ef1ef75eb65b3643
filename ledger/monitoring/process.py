"""Memory of this process, and of its accelerators."""

import os
from functools import cache

import psutil
import torch

from weightledger.ledger.tensors.memory import idle_bytes

_MB = 1 << 20


def memory_usage_mb() -> float:
    """Resident memory of this process in MiB, without what it keeps for tensors to come.

    That the first update leaves its predecessor's memory behind is no leak.
    """
    resident: int = _process(os.getpid()).memory_info().rss
    return max(0, resident - idle_bytes()) / _MB


@cache
def _process(pid: int) -> psutil.Process:
    """Finding out about a process takes longer than asking for its memory."""
    return psutil.Process(pid)


def device_memory_mb() -> float | None:
    """Memory that this process has allocated on its accelerators, in MiB; None without one."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    devices = range(torch.cuda.device_count())
    return sum(torch.cuda.memory_allocated(device) for device in devices) / _MB
