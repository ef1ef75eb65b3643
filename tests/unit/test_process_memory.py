"""What the process weighs, read from a file that stays open."""

import gc
import os

import numpy as np
import psutil

from weightledger.ledger.monitoring.process import memory_usage_mb
from weightledger.ledger.tensors.memory import idle_bytes

_MB = 1 << 20


def test_it_is_what_others_say_of_this_process() -> None:
    gc.collect()  # or what others left may go meanwhile
    before = memory_usage_mb()
    more = np.ones(64 * _MB, dtype=np.uint8)
    after = memory_usage_mb()
    assert 56 <= after - before <= 72
    resident = psutil.Process(os.getpid()).memory_info().rss
    assert abs(after - (resident - idle_bytes()) / _MB) < 8
    assert more.all()
