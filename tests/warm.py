"""Processes that need not import what they run, which takes longer than what they do.

One process per worker of pytest has imported torch, FastAPI and the rest, once, or is forked from
one that has (`tests.workers`). From it the servers and commands of tests are forked: real
processes, with arguments, environment, folder and output of their own, that run `python -m
weightledger …`, or a program, from its first line on. It ends when the worker does.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

from tests.forks import be
from tests.waiting import HELPERS
from weightledger.ledger import http

_PRELOADED = (
    "weightledger.api.server.serve",
    "weightledger.api.server.app",
    "weightledger.api.cli.serving",
    "weightledger.ledger.codecs.compiled",
    "weightledger.ledger.history.rebuilding",
    "weightledger.ledger.projection.starting",
    "weightledger.ledger.sql.torn_copies",
    "alembic.command",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "pydantic.v1",
    "httpcore2",
    "weightledger.ledger.engines.transformers",
    "transformers.models.llama.modeling_llama",
)
# The loops, which are compiled when this is imported, if nobody has before.
LOOPS = "tests.numba_ready"
_KIND = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
_MOST_BYTES = 1 << 20
_MOST_HANDLES = 8
_ONE_AT_A_TIME = threading.Lock()

# Where somebody forks a warm process for whoever connects; None: each worker starts its own.
_forked_at: str | None = None

# What the interpreter and the libraries below it read before the first line.
_THREADS = "OMP_NUM_THREADS"  # torch can be told later
_TOO_LATE = ("LD_", "PYTHON", "OMP_", "MKL_", "ATEN_", "NUMBA_")


def suits(env: Mapping[str, str]) -> bool:
    """Whether a process with this environment may be forked: what is imported has read its own."""
    names = {name for name in {*env, *os.environ} if name.startswith(_TOO_LATE)} - {_THREADS}
    return all(env.get(name) == os.environ.get(name) for name in names)


class WarmProcess:
    """What `subprocess.Popen` is to others, of a process that was forked from the warm one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._asking = threading.Lock()
        self._handle = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._handle)

    def poll(self) -> int | None:
        """The exit status, -N for signal N; None while it runs."""
        with self._asking:  # a status is there once, and two threads may wait for the process
            if self.returncode is None and select.select([self._handle], [], [], 0)[0]:
                self.returncode = _ask({"status": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; TimeoutExpired after `timeout` seconds."""
        if self.returncode is None and not select.select([self._handle], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    args: Sequence[str],
    *,
    log: BinaryIO,
    env: Mapping[str, str],
    cwd: Path | None,
    program: str | None = None,
) -> WarmProcess:
    """`python -m weightledger` with these arguments, or a program, writing to `log`."""
    return _started({"args": list(args), "program": program}, log, log, env, cwd)


def run(
    *args: str,
    program: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`python -m weightledger` with these arguments, or a program, run to its end."""
    asked = {"args": list(args), "program": program}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = _started(asked, out, err, {**os.environ, **(env or {})}, cwd)
        status = process.wait()
        texts = [file.read().decode() for file in (out, err) if file.seek(0) == 0]
    return subprocess.CompletedProcess(args, status, *texts)


def begin(*args: str, program: str, log: IO[bytes]) -> WarmProcess:
    """A program, started; it writes to `log`."""
    return _started({"args": list(args), "program": program}, log, log, os.environ, None)


def begin_with(handles: Sequence[int], *, program: str) -> WarmProcess:
    """A program, started, with this one's input and output; it finds `handles` in its arguments.

    As numbers of its own for them.
    """
    task = {"args": [], "program": program, "env": dict(os.environ), "cwd": str(Path.cwd())}
    return WarmProcess(_ask(task, 1, 2, 0, *handles))


@contextlib.contextmanager
def shell_command(file: Path) -> Iterator[None]:
    """While this lasts, `file` is a program that does what `python -m weightledger` does."""
    _line()  # a process that was started later would keep the pipes of the first client open
    with tempfile.TemporaryDirectory() as folder, socket.socket(*_KIND) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen()
        write_client(file, f"{folder}/socket")
        answering = threading.Thread(target=_answer, args=(listener,))
        answering.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            answering.join()


def write_client(file: Path, socket_path: str) -> None:
    """Make `file` a program that has who listens do what it was asked, in its place."""
    client = Path(__file__).with_name("warm_command.py")
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "{client}" {socket_path} "$@"\n')
    file.chmod(0o755)


def _answer(listener: socket.socket) -> None:
    """Do what clients ask for, one after the other; ends when nobody can ask any more."""
    while True:
        try:
            line, _ = listener.accept()
        except OSError:  # it was shut down
            return
        with line:
            data, handles, _, _ = socket.recv_fds(line, _MOST_BYTES, 3)
            process = WarmProcess(_ask({"program": None, **json.loads(data)}, *handles))
            for handle in handles:
                os.close(handle)
            line.send(str(process.wait()).encode())


def _started(
    asked: Mapping[str, Any],
    out: IO[bytes],
    err: IO[bytes],
    env: Mapping[str, str],
    cwd: Path | None,
) -> WarmProcess:
    task = {"program": None, **asked, "env": dict(env), "cwd": str(cwd or Path.cwd())}
    return WarmProcess(_ask(task, out.fileno(), err.fileno()))


def _ask(what: Mapping[str, Any], *handles: int) -> int:
    data = json.dumps(what).encode()
    with _ONE_AT_A_TIME:  # or one thread reads the answer to another's question
        line = _line()
        socket.send_fds(line, [data], list(handles))
        return int(json.loads(line.recv(_MOST_BYTES)))


@functools.cache
def _line() -> socket.socket:
    """The line to the warm process, which is started by the first who asks."""
    if _forked_at is not None:
        line = socket.socket(*_KIND)
        line.connect(_forked_at)
        HELPERS.add(int(line.recv(_MOST_BYTES)))
        return line
    ours, its = socket.socketpair(*_KIND)
    its.set_inheritable(True)
    search = os.pathsep.join(filter(None, sys.path))
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "tests.warm", str(its.fileno())],
        {**os.environ, "PYTHONPATH": search},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    its.close()
    atexit.register(_end, ours, pid)
    return ours


def _end(line: socket.socket, pid: int) -> None:
    line.close()
    os.waitpid(pid, 0)


def _serve(line: socket.socket) -> dict[str, Any] | None:
    """Fork who is asked for; what a child has to do, and None when nobody asks any more.

    Who still runs then is killed: nobody would end it.
    """
    running: set[int] = set()
    while True:
        data, handles, _, _ = socket.recv_fds(line, _MOST_BYTES, _MOST_HANDLES)
        if not data:  # whoever asked is gone, perhaps killed in the middle of a test
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            return None
        asked: dict[str, Any] = json.loads(data)
        if "status" in asked:
            _, status = os.waitpid(asked["status"], 0)
            running.discard(asked["status"])
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                line.close()
                return {**asked, "handles": handles}
            running.add(answer)
            for handle in handles:
                os.close(handle)
        line.send(json.dumps(answer).encode())


def _become(
    args: Sequence[str], program: str | None, env: Mapping[str, str], cwd: str, handles: list[int]
) -> None:
    """Be the process that was asked for."""
    others = take_over(handles)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if _THREADS in env:
        torch.set_num_threads(int(env[_THREADS]))
    if program is None:
        sys.argv = ["weightledger", *args]
        runpy.run_module("weightledger", run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *args, *map(str, others)]
        warnings.simplefilter("error")
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})


def take_over(handles: Sequence[int]) -> Sequence[int]:
    """Have these files as output, errors and, where there is a third, input; those that remain."""
    for number, handle in zip((1, 2, 0), handles, strict=False):
        os.dup2(handle, number)
        os.close(handle)
    return handles[3:]


def preload() -> None:
    """Import what servers and commands need, but for the loops, and read whom clients trust."""
    for module in _PRELOADED:
        importlib.import_module(module)
    http.client("http://127.0.0.1").close()


def settle() -> None:
    """Keep what there is out of the sight of the collectors of all that is forked from now on."""
    gc.collect()
    gc.freeze()
    gc.enable()


def fork_at(address: str) -> None:
    """From now on warm processes are forked by who listens there."""
    global _forked_at
    _forked_at = address


def live(line: socket.socket) -> None:
    """Be a warm process; in what is forked from it, be what was asked for."""
    task = _serve(line)
    if task is not None:
        be(functools.partial(_become, **task))


if __name__ == "__main__":
    gc.disable()
    preload()
    importlib.import_module(LOOPS)
    settle()
    live(socket.socket(fileno=int(sys.argv[1])))
