"""A real server in a thread of the test's process, so that a test can look behind it."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import torch
import uvicorn

from tests import patient
from tests.waiting import PATIENCE_S, until
from weightledger import DynamicModelManager
from weightledger.api.server.app import create_app
from weightledger.api.server.settings import Settings


class _Server(uvicorn.Server):
    """uvicorn's, which looks ten times a second whether it is to end, ends at once when told to."""

    _TICK_S = 1.0  # between two dates of replies

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), self._TICK_S)

    def end(self) -> None:
        """Serve no more."""
        self.should_exit = True
        with contextlib.suppress(RuntimeError):  # it ended by itself
            self._loop.call_soon_threadsafe(self._told.set)


@contextlib.contextmanager
def listening(manager: DynamicModelManager, **settings: Any) -> Iterator[str]:
    """The URL of a server around `manager`."""
    app = create_app(manager, Settings(**settings))
    server = _Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on")
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started, "the server has not started")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.end()
            thread.join(PATIENCE_S)


@dataclass(frozen=True)
class Here:
    """A server in this process, its data folder and its manager."""

    url: str
    folder: Path
    manager: DynamicModelManager

    def client(self, **headers: str) -> httpx2.Client:
        return patient.Client(base_url=self.url, headers=headers)


@contextlib.contextmanager
def here(folder: Path, **settings: Any) -> Iterator[Here]:
    """A server of a small model, whose data folder is `folder`."""
    config = Settings(data_dir=folder, **settings).update_config()
    manager = DynamicModelManager(torch.nn.Linear(2, 3), "m", config=config)
    with contextlib.closing(manager), listening(manager, data_dir=folder, **settings) as url:
        yield Here(url, folder, manager)


def openai_client(url: str) -> openai.OpenAI:
    """The client that users have, as it comes, except that it does not try again."""
    http = openai.DefaultHttpxClient(verify=patient.CERTIFICATES)
    return openai.OpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        max_retries=0,
        timeout=PATIENCE_S,
        http_client=http,
    )
