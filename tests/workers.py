"""Runs pytest with workers that are forked from one process, which has imported every test once.

    python -m tests.workers NUMBER ARGUMENT…

What pytest-xdist starts for each of its workers imports 7,500 modules before its first test, for
20 seconds of a processor. Here one process collects the tests, and when xdist starts a Python it
gets a fork of that one, which finds all of it imported. Warm processes (`tests.warm`) are forked
as well, from one that has no test in it. A worker that dies is replaced as ever.

A clone that is new has its loops compiled by a process beside, for as long as all that is imported.

Tests have their folders in memory where there is room: they write gigabytes and wait for the disk
with most of it, which tells them nothing, for only a crash of the machine could.
"""

import contextlib
import functools
import gc
import importlib
import io
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests import in_memory, warm
from tests.forks import fork

_KIND = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
_MOST_BYTES = 1 << 20
_HOW = ("--dist", "loadscope", "--no-loadscope-reorder")
# Its plugin could say better what its own assertions were about.
_KNOWN = ("-W", "ignore:Module already imported so cannot be rewritten; anyio")
_DEATHS = 4  # of a worker's place, before the run ends


def main(number: int, arguments: Sequence[str]) -> int:
    """The status of a run of pytest with so many workers."""
    folder = Path(tempfile.mkdtemp(prefix="workers-"))
    memory = in_memory.folder()
    if memory is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", memory)  # above pytest-of-USER/pytest-N
    try:
        return _run(folder, number, arguments)
    finally:  # forks end before they come here
        shutil.rmtree(folder)


def _run(folder: Path, number: int, arguments: Sequence[str]) -> int:
    gc.disable()  # a quarter of what follows, until all that stays is settled
    compiling = fork(functools.partial(_import, warm.LOOPS))
    compiled = os.pidfd_open(compiling)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as pytest has it
        warm.preload()  # once, for those that have no test in them and for the tests
    ours = os.pidfd_open(os.getpid())
    with _listener(folder / "warm") as listener:
        fork(functools.partial(_fork_warm_processes, listener, ours, compiled))
    os.close(ours)
    warm.fork_at(str(folder / "warm"))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork would wait for threads that only this process has
    _collect(arguments)
    _import_loops(compiled)
    os.close(compiled)
    os.waitpid(compiling, 0)
    warm.settle()

    python = folder / "python"
    warm.write_client(python, str(folder / "worker"))
    places = ["--tx", f"{number}*popen//python={python}"]
    run = [*places, "--max-worker-restart", str(_DEATHS * number), *_HOW, *_KNOWN, *arguments]
    with _listener(folder / "worker") as listener:
        controller = fork(functools.partial(_control, run))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # pytest ends its workers
        return _fork_workers(listener, controller, threads)


def _import(module: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.import_module(module)


def _import_loops(compiled: int) -> None:
    """Import them when the process with this pidfd has ended, which compiles and keeps them."""
    select.select([compiled], [], [])
    _import(warm.LOOPS)


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(*_KIND)
    listener.bind(str(path))
    listener.listen()
    return listener


def _fork_warm_processes(listener: socket.socket, asked_by: int, compiled: int) -> None:
    """Fork one for whoever connects, until the process `asked_by`, a pidfd, ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    _import_loops(compiled)
    os.close(compiled)
    warm.settle()
    while listener in select.select([listener, asked_by], [], [])[0]:
        line, _ = listener.accept()
        fork(functools.partial(_be_warm, line, listener))
        line.close()


def _be_warm(line: socket.socket, listener: socket.socket) -> None:
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    line.send(str(os.getpid()).encode())
    warm.live(line)


def _collect(arguments: Sequence[str]) -> None:
    """Import what the workers will. What fails here fails there, and is told there."""
    import pytest

    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *_KNOWN, *arguments])


def _control(run: Sequence[str]) -> None:
    import pytest

    from tests import scopes

    sys.exit(pytest.main(list(run), plugins=[scopes]))


def _fork_workers(listener: socket.socket, controller: int, threads: int) -> int:
    """Fork one for each Python that is started, until the controller ends; its status.

    Who was started is told how its worker ended; a worker whose other end is gone is killed.
    """
    over = os.pidfd_open(controller)
    lines: dict[socket.socket, int] = {}
    while True:
        workers = {os.pidfd_open(pid): line for line, pid in lines.items()}
        ready = select.select([listener, over, *workers, *lines], [], [])[0]
        for handle, line in workers.items():
            os.close(handle)
            if line in ready:
                os.kill(lines[line], signal.SIGKILL)
            if handle in ready or line in ready:
                status = os.waitstatus_to_exitcode(os.waitpid(lines.pop(line), 0)[1])
                with line, contextlib.suppress(BrokenPipeError):
                    line.send(str(status).encode())
        if over in ready:
            return os.waitstatus_to_exitcode(os.waitpid(controller, 0)[1])
        if listener in ready:
            line, _ = listener.accept()
            data, handles, _, _ = socket.recv_fds(line, _MOST_BYTES, 3)
            others = [listener, line, *lines]
            work = functools.partial(_be_worker, json.loads(data), handles, threads, others)
            lines[line] = fork(work)
            for handle in handles:
                os.close(handle)


def _be_worker(
    asked: dict[str, Any], handles: list[int], threads: int, others: list[socket.socket]
) -> None:
    """Do what a Python does that was started with `-u -c PROGRAM`."""
    for other in others:
        other.close()
    warm.take_over(handles)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(threads)
    sys.stdin = os.fdopen(os.dup(0))
    sys.argv = ["-c"]
    sys.modules["__main__"] = types.ModuleType("__main__")  # processes of tests import it again
    exec(asked["args"][-1], vars(sys.modules["__main__"]))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
