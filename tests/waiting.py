"""Waiting for what a test needs: by the progress of whoever works on it, not by the clock.

On a loaded machine everything takes ten times as long and nothing is wrong. So one gives up on a
process that is gone, that stands still, or that has used more processor time than the work could
need, and on nothing else.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")

STILL_S = 90.0
"""How long a process may use no processor time before it is taken to be stuck, in seconds."""

PATIENCE_S = 300.0
"""What clients and locks of tests wait for an answer: more than any load explains."""

_PAUSE_S = 0.005

# To ask for a process's children looks at every process of the machine.
_LOOK_S = 0.25
_WHAT = "what the test waits for has not come"


class GaveUp(AssertionError):
    """What a test waited for did not come."""


def until(
    ready: Callable[[], T], what: str = _WHAT, *, pid: int | None = None, cpu_s: float = 120
) -> T:
    """The first true answer of `ready`, asked again and again.

    `pid` is the process that works on it, by default this one; `cpu_s` is what it and its children
    may use of processor time meanwhile. Raises GaveUp, saying what did not come.
    """
    began = used = _cpu_s(pid)
    moved = looked = time.monotonic()
    while True:
        answer = ready()
        if answer:
            return answer
        time.sleep(_PAUSE_S)
        if time.monotonic() - looked < _LOOK_S:
            continue
        now, looked = _cpu_s(pid), time.monotonic()
        if now is None or began is None:
            raise GaveUp(f"{what}: the process is gone")
        if now != used:
            used, moved = now, time.monotonic()
        if now - began > cpu_s:
            raise GaveUp(f"{what}: not after {cpu_s:.0f} s of processor time")
        if time.monotonic() - moved > STILL_S:
            raise GaveUp(f"{what}: nothing has moved for {STILL_S:.0f} s")


def _cpu_s(pid: int | None) -> float | None:
    """Processor time of a process and its children, in seconds; None when it is gone."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        times = [process.cpu_times()]
        times += [child.cpu_times() for child in process.children(recursive=True)]
    except psutil.NoSuchProcess as error:
        return None if error.pid in (pid, None) else _cpu_s(pid)
    return sum(one.user + one.system for one in times)
