"""Memory of this process, and of its accelerators."""

import os
from collections.abc import Callable
from functools import cache

import psutil
import torch

from weightledger.ledger.tensors.memory import idle_bytes

_MB = 1 << 20


def memory_usage_mb() -> float:
    """Resident memory of this process in MiB, without what it keeps for tensors to come.

    That the first update leaves its predecessor's memory behind is no leak.
    """
    return max(0, _resident(os.getpid())() - idle_bytes()) / _MB


@cache
def _resident(pid: int) -> Callable[[], int]:
    """What tells the resident bytes of a process.

    On Linux that is a file kept open: psutil takes twelve times as long, before and after every
    update.
    """
    try:
        statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
    except OSError:
        process = psutil.Process(pid)
        return lambda: int(process.memory_info().rss)
    page = os.sysconf("SC_PAGE_SIZE")
    return lambda: int(os.pread(statm, 64, 0).split()[1]) * page


def device_memory_mb() -> float | None:
    """Memory that this process has allocated on its accelerators, in MiB; None without one."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    devices = range(torch.cuda.device_count())
    return sum(torch.cuda.memory_allocated(device) for device in devices) / _MB
