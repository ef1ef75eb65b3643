"""Workers of this machine: processes that do one task at a time and end with who started them.

Each is an interpreter of its own, which takes a second or two of processor time to import what it
works with; or a fork of this process, which has that already and begins at once. A fork copies the
thread that forks alone: whatever lock another held stays taken for ever, and a connection to a
database would belong to both. So programs fork only when they have begun nothing yet, and where
this process has one thread.
"""

import contextlib
import fcntl
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from weightledger.ledger.parallel import Task
from weightledger.ledger.parallel.doing import asked, unpack
from weightledger.ledger.parallel.frames import receive, send
from weightledger.ledger.parallel.worker import work_off

_STDERR = 2

_SOON_S = 1.0  # in which a worker ends what it has started


class Process:
    """A child of this process, by the pid that forking gave."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def status(self, wait: bool) -> int | None:
        """The status that it ended with, negative for a signal; None while it is at work."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status


class Worker:
    """A process that does one task at a time; `into` and `out` are its input and its output."""

    def __init__(self, process: Process, into: int, out: int) -> None:
        self._process, self._in, self._out = process, into, out
        self.number: int | None = None
        self.deadline: float | None = None

    @classmethod
    def started(cls, threads: int) -> "Worker":
        """An interpreter of its own."""
        there_in, into = os.pipe()
        out, there_out = os.pipe()
        process = subprocess.Popen(
            # -P: a file of the current folder takes no module's place.
            [sys.executable, "-P", "-m", "weightledger.ledger.parallel.worker"],
            stdin=there_in,
            stdout=there_out,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            start_new_session=True,
        )
        os.close(there_in)
        os.close(there_out)
        process.returncode = 0  # waited for here, by its pid
        return cls(Process(process.pid), into, out)

    @classmethod
    def forked(cls, threads: int) -> "Worker":
        """A fork of this process, which has none of its files and connections."""
        there_in, into = os.pipe()
        out, there_out = os.pipe()
        pid = os.fork()
        if pid == 0:
            _become_worker(there_in, there_out, threads)
        os.close(there_in)
        os.close(there_out)
        return cls(Process(pid), into, out)

    def fileno(self) -> int:
        return self._out

    def begin(self, number: int, task: Task) -> None:
        self.number, self.deadline = number, None
        # Where it died while idle, the end of its output tells.
        with contextlib.suppress(BrokenPipeError):
            send(self._in, asked(task))

    def told(self, task: Task) -> None:
        """It has said something: from now on it may be silent for the task's limit."""
        self.deadline = None if task.limit_s is None else time.monotonic() + task.limit_s

    def message(self) -> Any:
        """The next thing it says; None when it died."""
        data = receive(self._out)
        return None if data is None else unpack(data)

    def end(self) -> int:
        """End it, however busy, with the commands that it has started; its exit status."""
        os.close(self._in)
        until = time.monotonic() + _SOON_S
        while (status := self._process.status(wait=False)) is None and time.monotonic() < until:
            time.sleep(0.005)
        if status is None:
            os.kill(self._process.pid, signal.SIGKILL)
            status = self._process.status(wait=True)
        os.close(self._out)
        assert status is not None
        return status


def forks(count: int, prepare: Callable[[], None], threads: int) -> list[Worker]:
    """So many forks of this process once it is prepared; none where it has other threads.

    For a program that has opened nothing yet: see above.
    """
    if not sys.platform.startswith("linux"):
        return []  # what libraries of other systems do in a fork is not known here
    prepare()
    if threading.active_count() > 1:  # OpenBLAS, which has one of its own, ends it before a fork
        return []
    return [Worker.forked(threads) for _ in range(count)]


def _become_worker(into: int, out: int, threads: int) -> NoReturn:
    """What a fork does from its beginning to its end; nothing of its origin's is cleaned up."""
    try:
        gc.freeze()  # what is there is never collected, and so never closed in an orderly way
        os.setsid()
        # Not in the place of a standard stream that the origin does not have.
        into, out = (fcntl.fcntl(end, fcntl.F_DUPFD, _STDERR + 1) for end in (into, out))
        for name in os.listdir("/proc/self/fd"):
            if int(name) > _STDERR and int(name) not in (into, out):
                with contextlib.suppress(OSError):  # the listing's own
                    os.close(int(name))
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(threads)
        work_off(into, out)
    finally:
        os._exit(1)
