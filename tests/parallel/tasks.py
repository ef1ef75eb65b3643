"""Tasks that the executors' suite has done; workers import this file."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from weightledger.ledger.errors import CorruptLedger, NotFound
from weightledger.ledger.parallel import Told


def square(told: Told, number: int) -> dict[str, Any]:
    told(1, 2)
    return {"number": number, "square": number * number, "process": os.getpid()}


def refuse(told: Told, seq: int) -> None:
    raise CorruptLedger("bytes are not what they were", seq=seq)


def not_there(told: Told) -> None:
    raise NotFound("no such thing", param="thing")


def break_down(told: Told) -> None:
    raise ZeroDivisionError("a fault of ours")


def die(told: Told, marks: str, times: int, by: int) -> str:
    """Is killed the first so many times that it is begun, wherever; a worker's work only."""
    folder = Path(marks)
    begun = len(list(folder.iterdir()))
    if begun < times:
        (folder / str(begun)).touch()
        assert os.getpid() != by
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def open_files(told: Told) -> list[str]:
    """What this process has open, beside the three that every process has."""
    opened = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2:
                opened.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the listing's own
            continue
    return opened


def wait(told: Told, begun: str) -> None:
    """Is at work until it is cancelled."""
    Path(begun, str(os.getpid())).touch()
    while True:
        told(0, 1)
        time.sleep(0.01)


def unlike_json(told: Told) -> list[float]:
    return [float("inf"), float("-inf"), 0.1]
