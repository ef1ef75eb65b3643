"""A small inference server with the weight routes that vLLM and Aphrodite document.

Real in what matters here: a process of its own, HTTP, two workers with a torch model each, which
read the ledger through the plugin's own code and load whole modules as vLLM does. What it stands in
for is the servers' scheduling and kernels. `/_fail` makes a route fail in a documented way.

    python -m tests.engines.inference_server --surface vllm --port 8000 --model FOLDER
"""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from safetensors.torch import load_file

from tests.engines.tiny_model import TinyModel, greedy
from weightledger.ledger.engines.vllm import StateRef
from weightledger.ledger.engines.vllm.staging import Instruction, Staging
from weightledger.ledger.errors import LedgerError

WORKERS = 2
SLOW_S = 1.0


class Server:
    """The state that the routes change."""

    def __init__(self, folder: Path, surface: str) -> None:
        base = load_file(folder / "model.safetensors")
        self.models = [TinyModel(base) for _ in range(WORKERS)]
        # Workers of the older surface have no model when they are told what to do.
        packed = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
        self.staging = [
            Staging(packed, model.attempt if surface == "vllm" else None) for model in self.models
        ]
        self.version = "default"
        self.paused = False
        self.active = False
        self.cache: dict[tuple[str, str], list[int]] = {}
        self.adapters: dict[str, str] = {}
        self.faults: dict[str, tuple[str, int]] = {}
        self.lock = threading.Lock()

    def fault(self, path: str) -> str | None:
        """The fault that is due on a route, used up."""
        kind, times = self.faults.get(path, ("", 0))
        if times <= 0:
            return None
        self.faults[path] = (kind, times - 1)
        return kind

    def complete(self, prompt: str, model: str) -> list[int]:
        """Greedy tokens; as a prefix cache does, remembers what the weights of then gave."""
        key = (prompt, self.adapters.get(model, model))
        if key not in self.cache:
            self.cache[key] = greedy(self.models, prompt)
        return self.cache[key]

    def load(self, target: StateRef, *, half: bool) -> None:
        """Every worker loads what it staged; `half`: the second one fails at it."""
        for number, (model, staging) in enumerate(zip(self.models, self.staging, strict=True)):
            staging.load(target, _fails if half and number else model.load_weights)


def _fails(tensors: list[tuple[str, torch.Tensor]]) -> None:
    raise RuntimeError("out of memory")


def create_app(server: Server, surface: str) -> FastAPI:
    """The routes of a surface: `vllm`, or `aphrodite` without sessions and weight versions."""
    app = FastAPI()

    @app.middleware("http")
    async def faults(request: Request, call_next: Any) -> Response:
        kind = server.fault(request.url.path)
        if kind == "refuse":
            return failed("refused")
        if kind == "nonsense":
            return Response("<html>it works</html>", media_type="text/html")
        if kind == "die":
            os._exit(1)
        if kind == "slow":
            await asyncio.sleep(SLOW_S)
        if kind == "half":
            request.state.half = True
        answer: Response = await call_next(request)
        if kind == "refuse_after":
            return failed("refused, but done")
        if kind == "die_after":
            os._exit(1)
        return answer

    @app.exception_handler(LedgerError)
    @app.exception_handler(RuntimeError)
    async def worker_failed(request: Request, error: Exception) -> Response:
        return failed(f"Worker failed with error '{error}'")

    @app.post("/_fail")
    def fail(path: str, kind: str, times: int = 1) -> None:
        server.faults[path] = (kind, times)

    @app.post("/_heal")
    def heal() -> None:
        server.faults.clear()

    @app.get("/health")
    def health() -> None:
        return None

    @app.post("/v1/completions")
    def completions(body: dict[str, Any] = Body()) -> Any:  # noqa: B008
        with server.lock:
            if server.paused:  # the real one would let it wait
                return JSONResponse({"paused": True}, 503)
            tokens = server.complete(body["prompt"], body.get("model", "m"))
            return {"tokens": tokens, "weight_version": server.version}

    @app.get("/v1/models")
    def models() -> Any:
        base = {"id": "m", "root": "m", "parent": None}
        loaded = [{"id": n, "root": p, "parent": "m"} for n, p in server.adapters.items()]
        return {"data": [base, *loaded]}

    @app.post("/v1/load_lora_adapter")
    def load_lora_adapter(body: dict[str, Any] = Body()) -> Response:  # noqa: B008
        name, path = body["lora_name"], body["lora_path"]
        if not Path(path).is_dir():
            return failed(f"No adapter found for {path}", 404)
        if name in server.adapters and not body["load_inplace"]:
            return failed(f"The lora adapter '{name}' has already been loaded.", 400)
        server.adapters[name] = path
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    def unload_lora_adapter(body: dict[str, Any] = Body()) -> Response:  # noqa: B008
        if server.adapters.pop(body["lora_name"], None) is None:
            return failed("The lora adapter cannot be found.", 404)
        return PlainTextResponse("Success: LoRA adapter removed successfully.")

    @app.post("/pause")
    def pause(mode: str = "abort") -> Any:
        with server.lock:
            server.paused = True
        return {"status": "paused"}

    @app.post("/resume")
    def resume() -> Any:
        with server.lock:
            server.paused = False
        return {"status": "resumed"}

    @app.get("/is_paused")
    def is_paused() -> Any:
        return {"is_paused": server.paused}

    @app.post("/reset_prefix_cache")
    def reset_prefix_cache() -> Any:
        with server.lock:
            server.cache.clear()
        return {"success": True}

    @app.post("/init_weight_transfer_engine")
    def init_weight_transfer_engine(init_info: dict[str, Any] = Body(embed=True)) -> Any:  # noqa: B008
        with server.lock:
            for staging in server.staging:
                staging.follow(Instruction(**init_info))
        return {"message": "Weight transfer initialized"}

    @app.post("/update_weights")
    def update_weights(
        request: Request,
        update_info: dict[str, Any] = Body(embed=True),  # noqa: B008
    ) -> Any:
        with server.lock:
            if surface == "vllm" and not server.active:
                raise RuntimeError("start_weight_update must be called before update_weights.")
            target = StateRef(update_info["seq"], bytes.fromhex(update_info["digest"]))
            try:
                server.load(target, half=getattr(request.state, "half", False))
            except BaseException:
                server.active = False
                raise
        return {"message": "Weights updated"}

    if surface == "vllm":
        _newer_routes(app, server)
    return app


def _newer_routes(app: FastAPI, server: Server) -> None:
    @app.post("/start_weight_update")
    def start_weight_update() -> Any:
        with server.lock:
            if server.active:
                raise RuntimeError(
                    "start_weight_update called while a weight update is already active."
                )
            server.active = True
        return {"message": "Weight update started"}

    @app.post("/finish_weight_update")
    def finish_weight_update(weight_version: str | None = Body(None, embed=True)) -> Any:
        with server.lock:
            if not server.active:
                raise RuntimeError("finish_weight_update called without start_weight_update.")
            server.active = False
            server.version = weight_version or server.version
        return {"message": "Weight update finished"}

    @app.post("/update_weight_version")
    def update_weight_version(new_version: str = Body(embed=True)) -> Any:
        server.version = new_version
        return {"success": True, "new_version": new_version}

    @app.get("/weight_info")
    def weight_info() -> Any:
        return {"weight_version": server.version}


def failed(message: str, status: int = 500) -> Response:
    """The servers' form of an error."""
    error = {"message": message, "type": "InternalServerError", "param": None, "code": status}
    return JSONResponse({"error": error}, status)


def serve(surface: str, port: int, folder: str) -> None:
    """Serve a checkpoint folder until killed."""
    torch.set_num_threads(1)
    app = create_app(Server(Path(folder), surface), surface)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical")
