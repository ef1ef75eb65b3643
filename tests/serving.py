"""A real server process for tests: started, asked, killed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import httpx2

from tests import patient, warm
from tests.buckets import free_port
from tests.waiting import PATIENCE_S, GaveUp, until

COLD = (sys.executable, "-m", "weightledger", "serve")
"""The command that people start it by, which imports everything first."""


class Server:
    """One `weightledger serve` process (or another `verb`'s) on a port of its own.

    It is forked from a process that has imported all of it, unless `command` says how to start it;
    what is forked runs `program` in place of the command, if one is given.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        env: dict[str, str] | None = None,
        command: Sequence[str] | None = None,
        cwd: Path | None = None,
        verb: str = "serve",
        program: str | None = None,
    ) -> None:
        self._verb, self._program = verb, program
        self._command, self._cwd = command, cwd
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = options
        self._env = {**os.environ, **(env or {})}
        self.log = folder.parent / f"{folder.name}.log"
        self.process: subprocess.Popen[bytes] | warm.WarmProcess | None = None

    def start(self, output: BinaryIO | None = None) -> "Server":
        """Start, and wait until it is ready; raises with its output when it gives up.

        It writes to `output`, by default its log.
        """
        with contextlib.nullcontext(output) if output else self.log.open("ab") as log:
            options = ("--data-dir", str(self.folder), "--port", str(self.port), *self._options)
            if self._command is None and warm.suits(self._env):
                arguments, program = [self._verb, *options], self._program
                self.process = warm.start(
                    arguments, log=log, env=self._env, cwd=self._cwd, program=program
                )
            else:
                assert self._program is None
                self.process = subprocess.Popen(
                    [*(self._command or (*COLD[:-1], self._verb)), *options],
                    stdout=log,
                    stderr=log,
                    env=self._env,
                    cwd=self._cwd,
                )
        try:
            until(self._is_ready, "the server is not ready", pid=self.process.pid)
        except GaveUp as error:
            raise RuntimeError(f"{error}:\n{self.output()}") from None
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"the server gave up:\n{self.output()}")
        with socket.socket() as line:  # which costs a hundredth of a request that is refused
            if line.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        with contextlib.suppress(httpx2.HTTPError), self.client() as client:
            return client.get("/readyz").status_code == 200
        return False

    def refuse_to_start(self) -> str:
        """Start a server that must not come up; its output."""
        try:
            self.start()
        except RuntimeError:
            assert self.process is not None
            assert self.process.wait() == 1
            return self.output()
        self.stop()
        raise AssertionError("the server started")

    def output(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=PATIENCE_S)

    def shown(self) -> tuple[str, int, str]:
        """Status, seq and digest of what is served: /readyz without how much is signed by now."""
        with self.client() as http:
            ready = http.get("/readyz").json()
        return ready["status"], ready["seq"], ready["digest"]

    def client(self, **headers: str) -> httpx2.Client:
        return patient.Client(base_url=self.url, headers=headers)


@contextlib.contextmanager
def serving(folder: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """A server that is up, and gone afterwards."""
    server = Server(folder, *options, env=env)
    try:
        yield server.start()
    finally:
        server.stop()
