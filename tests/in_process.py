"""A real server in a thread of the test's process, so that a test can look behind it."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import uvicorn

from weightledger import DynamicModelManager
from weightledger.api.server.app import create_app
from weightledger.api.server.settings import Settings


@contextlib.contextmanager
def listening(manager: DynamicModelManager, **settings: Any) -> Iterator[str]:
    """The URL of a server around `manager`."""
    app = create_app(manager, Settings(**settings))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on")
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def openai_client(url: str) -> openai.OpenAI:
    """The client that users have, as it comes, except that it does not try again."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)


def until(reached: Callable[[], Any], seconds: float = 10) -> None:
    """Wait for another thread or process to get that far."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError
        threading.Event().wait(0.002)
