"""Waiting for what a test needs: by the progress of whoever works on it, not by the clock.

On a loaded machine everything takes ten times as long and nothing is wrong. So one gives up on a
process that is gone, that stands still, or that has used more processor time than the work could
need; and where the machine has had nothing to do for long, since then nobody is at work; and on
nothing else.
"""

import os
import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")

STILL_S = 90.0
"""How long a process may use no processor time before it is taken to be stuck, in seconds."""

MACHINE_STILL_S = 60.0
"""How long a machine may have nothing to do before what is waited for will not come, in seconds."""

PATIENCE_S = 300.0
"""What clients and locks of tests wait for an answer: more than any load explains."""

HELPERS: set[int] = set()
"""Processes that work for this one and are no children of it."""

# Between two questions: longer after a while, for asking a server takes the processor from it.
_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.05
_PAUSE_PART = 1 / 20  # of the time waited so far

# Clocks and threads that look every now and then use less than this, in processors.
_NOTHING = 0.25
_SAMPLE_S = 2.0

# The system counts in hundredths of a second, each process for itself.
_STEP_S = 0.05

# To ask for a process's children looks at every process of the machine.
_LOOK_S = 1.0
_WHAT = "what the test waits for has not come"


class GaveUp(AssertionError):
    """What a test waited for did not come."""


def until(
    ready: Callable[[], T], what: str = _WHAT, *, pid: int | None = None, cpu_s: float = 120
) -> T:
    """The first true answer of `ready`, asked again and again.

    `pid` is the process that works on it, by default this one and its HELPERS, but for the asking;
    `cpu_s` is what it and its children may use of processor time meanwhile. Raises GaveUp, saying
    what did not come.
    """
    began_s = looked_s = time.monotonic()
    work: _Work | None = None  # most waits are over before it is looked at
    while True:
        answer = ready()
        if answer:
            return answer
        waited_s = time.monotonic() - began_s
        time.sleep(min(max(_PAUSE_S, waited_s * _PAUSE_PART), _LONGEST_PAUSE_S))
        if time.monotonic() - looked_s < _LOOK_S:
            continue
        if work is None:
            work = _Work(pid, what, cpu_s)
        else:
            work.look()
        looked_s = time.monotonic()


class _Work:
    """What is done about `what`, by the process `pid` or all of ours, since this was made."""

    def __init__(self, pid: int | None, what: str, most_s: float) -> None:
        self._pid, self._what, self._most_s = pid, what, most_s
        self._began_s = self._used_s = self._cpu_s()
        self._moved = time.monotonic()
        self._machine = MachineRest()

    def look(self) -> None:
        """Raise GaveUp if it will not come to an end, or takes more than it could need."""
        now_s = self._cpu_s()
        if now_s - self._used_s > _STEP_S:
            self._used_s, self._moved = now_s, time.monotonic()
        if now_s - self._began_s > self._most_s:
            raise GaveUp(f"{self._what}: not after {self._most_s:.0f} s of processor time")
        if time.monotonic() - self._moved > STILL_S:
            raise GaveUp(f"{self._what}: nothing has moved for {STILL_S:.0f} s")
        if self._machine.lasts_s() > MACHINE_STILL_S:
            still = f"the machine has done nothing for {MACHINE_STILL_S:.0f} s"
            raise GaveUp(f"{self._what}: {still}")

    def _cpu_s(self) -> float:
        now_s = _cpu_s(self._pid)
        if now_s is None:
            raise GaveUp(f"{self._what}: the process is gone")
        return now_s


class MachineRest:
    """How long the machine has had nothing to do, whoever works on it.

    `worked_s` gives the processor time that was used on it so far, in seconds.
    """

    def __init__(self, worked_s: Callable[[], float] | None = None) -> None:
        self._worked_s = worked_s or _machine_cpu_s
        self._began = self._looked = time.monotonic()
        self._before_s = self._worked_s()

    def lasts_s(self) -> float:
        """Seconds until now in which it had nothing to do; to be asked every few seconds."""
        now = time.monotonic()
        if now - self._looked >= _SAMPLE_S:
            worked_s = self._worked_s()
            if worked_s - self._before_s > _NOTHING * (now - self._looked):
                self._began = now
            self._looked, self._before_s = now, worked_s
        return self._looked - self._began


def _machine_cpu_s() -> float:
    """Processor time of the whole machine, waiting for disks included, in seconds."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.guest - times.guest_nice)


def _cpu_s(pid: int | None) -> float | None:
    """Processor time of a process and its children, in seconds; None when it is gone.

    Of this process (None), what the thread that waits has not used: it asks, and brings nothing.
    """
    if pid is not None:
        return _family_cpu_s(pid)
    asking_s = time.thread_time()
    families = [_family_cpu_s(one) or 0.0 for one in (os.getpid(), *HELPERS)]
    return sum(families) - asking_s


def _family_cpu_s(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        times = [process.cpu_times()]
        times += [child.cpu_times() for child in process.children(recursive=True)]
    except psutil.NoSuchProcess as error:
        return None if error.pid == pid else _family_cpu_s(pid)
    # Those that have ended count where they were waited for: a row of short ones is progress.
    return sum(sum(one[:4]) for one in times)
