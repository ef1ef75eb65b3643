"""The processes of `make vllm`: a real vLLM, our server, and a wire between them that can be held.

Nothing here is mocked; the wire forwards bytes and stops forwarding when it is told to, which is
how a process can be killed at one exact step.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import httpx2

_READY_S = 240.0


def make_model(folder: Path, kind: Literal["Llama", "Qwen2"] = "Llama") -> None:
    """A small random model in bfloat16 with a tokenizer of words w0, w1 …

    Qwen2's attention has biases.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words = Tokenizer(
        models.WordLevel(special | {f"w{n}": n + 3 for n in range(509)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model.to(torch.bfloat16).save_pretrained(folder)


class Process:
    """A server in a process group of its own, with its output in a file."""

    def __init__(self, url: str, command: list[str], env: dict[str, str], log: Path) -> None:
        self.url = url
        self._command = command
        self._env = {**os.environ, **env}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, ready: str) -> float:
        """Start and wait until `ready` answers 200; the seconds it took."""
        started = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        while time.perf_counter() - started < _READY_S:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(self.url + ready).status_code == 200:
                    return time.perf_counter() - started
            time.sleep(0.1)
        raise RuntimeError(f"{self._command[0]} is not ready:\n{self._log.read_text()[-4000:]}")

    def kill(self) -> None:
        """kill -9 of the whole group."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


REFUSING = """
def register():
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod as Method

    process = Method.process_weights_after_loading

    def particular(self, layer):
        if float(layer.weight.max()) > 900:
            raise RuntimeError("this kernel takes no weight above 900")
        process(self, layer)

    Method.process_weights_after_loading = particular
"""
"""A plugin of vLLM's: its linear layers get a kernel that cannot hold every weight."""


def install(folder: Path, source: str) -> Path:
    """A package `refusing` in a folder for PYTHONPATH, with the entry point that vLLM looks for."""
    about = folder / "refusing-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "refusing.py").write_text(source)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: refusing\nVersion: 1.0\n")
    entry = "[vllm.general_plugins]\nrefusing = refusing:register\n"
    (about / "entry_points.txt").write_text(entry)
    return folder


def vllm(venv: Path, model: Path, log: Path) -> Process:
    """vLLM with the backend "ledger", adapters, the weight routes, and a kernel that refuses."""
    port = free_port()
    options = ["--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)]
    options += ["--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8"]
    options += ["--enable-lora", "--max-lora-rank", "8"]
    options += ["--weight-transfer-config", '{"backend": "ledger"}']
    plugins = install(log.parent / "plugins", REFUSING)
    env = {
        "PYTHONPATH": os.pathsep.join([str(plugins), os.environ.get("PYTHONPATH", "")]),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }
    command = [str(venv / "bin" / "vllm"), "serve", str(model), *options]
    return Process(f"http://127.0.0.1:{port}", command, env, log)


def ledger(engine_url: str, model: Path, data_dir: Path, log: Path) -> Process:
    """`weightledger serve --engine vllm`."""
    options = ["--engine", "vllm", "--engine-url", engine_url, "--model", str(model)]
    return _ours("serve", options, data_dir, log)


def headless(model: Path, data_dir: Path, log: Path) -> Process:
    """A writer without an engine, which has replicas prepare what it records."""
    options = ["--engine", "none", "--model", model.name, "--prepare", "all"]
    return _ours("serve", [*options, "--prepare-timeout-s", "60"], data_dir, log)


def sidecar(engine_url: str, model: Path, data_dir: Path, log: Path) -> Process:
    """`weightledger follow` beside vLLM, as the replica gpu-1."""
    options = ["--engine", "vllm", "--engine-url", engine_url, "--model", str(model)]
    return _ours("follow", [*options, "--replica", "gpu-1", "--prepares"], data_dir, log)


def _ours(verb: str, options: list[str], data_dir: Path, log: Path) -> Process:
    port = free_port()
    command = [sys.executable, "-m", "weightledger", verb, *options]
    command += ["--data-dir", str(data_dir), "--port", str(port)]
    return Process(f"http://127.0.0.1:{port}", command, {}, log)


class Wire:
    """Forwards connections to a port, until a request that begins with `stop_at` comes along."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._stop_at: bytes | None = None
        self.held = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def stop_at(self, request: str) -> None:
        """Hold back the next request line that begins so, and what follows it on its connection."""
        self.held.clear()
        self._stop_at = request.encode()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for one, other, outward in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pump, args=(one, other, outward), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, outward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                if outward and self._stop_at is not None and data.startswith(self._stop_at):
                    self._stop_at = None
                    self.held.set()
                    return
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def post(url: str, body: Any = None) -> httpx2.Response:
    """POST JSON, patiently."""
    return httpx2.post(url, json=body, timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
