"""Commands that tasks start: each in a process group of its own, which ends with what started it.

A worker that is to end ends them first (`worker`); one that is killed cannot.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

_running: set[int] = set()
_lock = threading.Lock()
_ending = threading.Event()


@contextlib.contextmanager
def command(
    words: Sequence[str], out: int | IO[bytes], environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """A command at work, which prints to `out`; nothing of it is left afterwards.

    Raises OSError where it cannot be started.
    """
    with _lock:
        if _ending.is_set():
            raise InterruptedError("this process is about to end")
        process = subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=out,
            env=dict(environment),
            start_new_session=True,
        )
        _running.add(process.pid)
    try:
        yield process
    finally:
        with _lock:
            _running.discard(process.pid)
            if process.poll() is None:
                _end(process.pid)
        process.wait()


def end_all() -> None:
    """End every command of this process, which starts no other from now on."""
    with _lock:
        _ending.set()
        for pid in _running:
            _end(pid)


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
