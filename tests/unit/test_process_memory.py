"""What the process weighs, read from a file that stays open."""

import mmap
import os

import numpy as np
import psutil

from weightledger.ledger.monitoring.process import memory_usage_mb
from weightledger.ledger.tensors.memory import idle_bytes

_MB = 1 << 20


def test_it_is_what_others_say_of_this_process() -> None:
    before = memory_usage_mb()
    more = np.frombuffer(mmap.mmap(-1, 64 * _MB), np.uint8)  # not what the heap has free
    more[:] = 1
    after = memory_usage_mb()
    assert 56 <= after - before <= 72
    resident = psutil.Process(os.getpid()).memory_info().rss
    assert abs(after - (resident - idle_bytes()) / _MB) < 8
    assert more.all()
