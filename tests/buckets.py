"""A real process that speaks S3 over HTTP, for tests; it holds its buckets in memory."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2

from tests import patient
from tests.waiting import GaveUp, until

# What a user would have in the environment; this server takes any key.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests-secret",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


class S3Server:
    """One server on a port of its own; `environment` is what its clients need."""

    def __init__(self, log: Path, **env: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}
        self._log, self._env = log, env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "S3Server":
        """Start, and wait until it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=log,
                stderr=log,
                env={**os.environ, **self._env},
            )
        try:
            until(self._answers, "the S3 server is not ready", pid=self.process.pid)
        except GaveUp as error:
            raise RuntimeError(f"{error}:\n{self._log.read_text()}") from None
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            patient.get(f"{self.url}/moto-api/data.json")
            return True
        return False

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def make_bucket(self, name: str) -> None:
        patient.put(f"{self.url}/{name}").raise_for_status()


@contextlib.contextmanager
def s3_serving(log: Path, **env: str) -> Iterator[S3Server]:
    """A server that is up, and gone afterwards."""
    server = S3Server(log, **env).start()
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
