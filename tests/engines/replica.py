"""An inference server process for tests, the driver of it, and what clients get from it."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import httpx2
from safetensors.torch import save_file

from tests import patient
from tests.engines import inference_server
from tests.engines.tiny_model import PROMPTS, WIDTH, checkpoint
from tests.waiting import PATIENCE_S, until
from weightledger import DynamicModelManager, DynamicUpdateConfig, IncrementalUpdateRequest
from weightledger.ledger.engines.vllm.engine import VllmEngine
from weightledger.ledger.engines.vllm.server import Server

MODEL = "tiny"
QUERY = "layers.0.attn.q_proj.weight"


class Replica:
    """One inference server on a port of its own; it can be killed and started again."""

    def __init__(self, surface: str, folder: Path, context: ForkServerContext) -> None:
        self._context = context
        self.surface = surface
        self.model = folder / MODEL
        self.model.mkdir(parents=True, exist_ok=True)
        save_file(checkpoint(), self.model / "model.safetensors")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._http = patient.Client(base_url=self.url)
        self._process: ForkServerProcess | None = None

    def start(self) -> "Replica":
        arguments = (self.surface, self.port, str(self.model))
        self._process = self._context.Process(target=inference_server.serve, args=arguments)
        self._process.start()
        until(self._is_healthy, "the inference server did not start", pid=self._process.pid)
        return self

    def ensure_up(self) -> None:
        """Start it again where it is dead."""
        assert self._process is not None
        if not self._process.is_alive():
            self.start()

    def _is_healthy(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return self._http.get("/health").status_code == 200
        return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.join()

    def wait_until_dead(self) -> None:
        assert self._process is not None
        self._process.join(PATIENCE_S)

    def close(self) -> None:
        self.kill()
        self._http.close()

    def fail(self, path: str, kind: str, times: int = 1) -> None:
        """Make a route fail that many times."""
        query = {"path": path, "kind": kind, "times": str(times)}
        assert self._http.post("/_fail", params=query).status_code == 200

    def heal(self) -> None:
        assert self._http.post("/_heal").status_code == 200

    def answer(self, prompt: str, model: str = "m") -> list[int] | None:
        """The tokens a client gets; None while the server holds requests back."""
        reply = self._http.post("/v1/completions", json={"prompt": prompt, "model": model})
        if reply.status_code == 503:
            return None
        tokens: list[int] = reply.json()["tokens"]
        return tokens

    def answers(self) -> dict[str, list[int]] | None:
        """The tokens for each prompt; None while the server holds requests back."""
        got = {prompt: self.answer(prompt) for prompt in PROMPTS}
        return None if None in got.values() else got  # type: ignore[return-value]

    def version(self) -> str:
        return str(self._http.get("/weight_info").json()["weight_version"])

    def adapters(self) -> dict[str, str]:
        data = self._http.get("/v1/models").json()["data"]
        return {item["id"]: item["root"] for item in data if item["parent"]}


class Watcher:
    """A client that goes on asking; `seen` is what it was answered."""

    def __init__(self, replica: Replica) -> None:
        self.seen: list[tuple[str, list[int]]] = []
        self._replica = replica
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            for prompt in PROMPTS:
                with contextlib.suppress(httpx2.HTTPError, KeyError):
                    tokens = self._replica.answer(prompt)
                    if tokens is not None:
                        self.seen.append((prompt, tokens))
                self._stop.wait(0.002)  # the update wants a share of the processor too


@contextlib.contextmanager
def driving(
    replica: Replica, folder: Path, timeout_s: float = 30, policy: str = "specification"
) -> Iterator[DynamicModelManager]:
    """A manager whose engine drives the replica; it retries without waiting."""
    database = f"sqlite:///{folder / 'ledger.db'}"
    server = Server(replica.url, timeout_s=timeout_s)
    engine = VllmEngine(
        checkpoint(),
        server,
        model=MODEL,
        database=database,
        adapter_root=folder / "adapters",
        pauses_s=(0, 0),
    )
    config = DynamicUpdateConfig(backup_dir=folder, database_url=database, policy=policy)
    manager = DynamicModelManager(engine, MODEL, config=config)
    try:
        yield manager
    finally:
        manager.close()
        engine.close()


def update(number: int = 1, **fields: Any) -> IncrementalUpdateRequest:
    """A change of one tensor of a fused module, large enough to change every answer."""
    data = [[float((3 * i + 5 * j + number) % 11 - 5) for j in range(WIDTH)] for i in range(WIDTH)]
    return IncrementalUpdateRequest(QUERY, data, learning_rate=1.0, **fields)
