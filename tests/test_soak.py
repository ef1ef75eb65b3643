"""Ten minutes of everything at once on a real server: `make soak`.

Updates, batches, versions, rollbacks and adapter swaps while clients stream: no request fails,
every reply is what its own state says, and memory stays where it was.
"""

import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import torch
from safetensors.torch import load_file, save

from tests.api.test_generation import greedy, text_of
from tests.in_process import openai_client
from tests.lora import peft_model, save_adapter
from tests.serving import Server
from tests.text_models import llama, save_llama, tokenizer
from weightledger import Ledger
from weightledger.ledger.audit.verify import verify

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
MODEL, ADAPTER = "tiny-llama", "style"
PROMPTS = ("the quick", "every reply names", "lazy dog while")
TOKENS = 24
CLIENTS = 4
CHECKED = 80  # replies that are generated again, each on its own rebuilt state

Reply = tuple[int, str, str, str]  # seq, model, prompt, text


def repeatedly(over: threading.Event, pause_s: float, work: Callable[[], None]) -> int:
    """Work until it is over; how often."""
    done = 0
    while not over.wait(pause_s):
        work()
        done += 1
    return done


class Writers:
    """What changes the model; each request must succeed."""

    def __init__(self, http: httpx2.Client, adapters: list[Path]) -> None:
        self._http = http
        self._chance = random.Random(1)
        self._adapters = adapters

    def post(self, path: str, **sent: Any) -> httpx2.Response:
        reply = self._http.post(path, **sent)
        assert reply.status_code == 200, reply.text
        return reply

    def update(self) -> None:
        layer = self._chance.randrange(2)
        body = {
            "parameter_name": f"model.layers.{layer}.self_attn.q_proj.weight",
            "indices": self._chance.sample(range(48 * 48), 40),
            "update_data": [self._chance.gauss(0, 1) for _ in range(40)],
            "learning_rate": 0.05,
        }
        assert self.post("/v1/models/incremental_update", json=body).json()["success"]

    def batch(self) -> None:
        generator = torch.Generator().manual_seed(self._chance.randrange(1 << 30))
        sent = {
            f"model.layers.{layer}.mlp.down_proj.weight": torch.randn(48, 96, generator=generator)
            for layer in (0, 1)
        }
        self.post(
            "/v1/models/batch_update?learning_rate=0.001",
            content=save(sent),
            headers={"content-type": "application/octet-stream"},
        )

    def version(self) -> None:
        self.post("/v1/models/create_version", json={"description": "soak"})

    def rollback(self) -> None:
        listed = self._http.get("/v1/models/versions").json()["versions"]
        # Not to the initial state, which has no adapter for those who stream through it.
        named = [one["version_id"] for one in listed if not one["version_id"].startswith("v0_")]
        self.post("/v1/models/rollback", json={"version_id": self._chance.choice(named)})

    def swap(self) -> None:
        chosen = str(self._chance.choice(self._adapters))
        body = {"lora_name": ADAPTER, "lora_path": chosen, "load_inplace": True}
        self.post("/v1/load_lora_adapter", json=body)


def stream(url: str, over: threading.Event, seed: int) -> list[Reply]:
    chance = random.Random(seed)
    seen: list[Reply] = []
    with openai_client(url) as client:
        while not over.is_set():
            model, prompt = chance.choice((MODEL, ADAPTER)), chance.choice(PROMPTS)
            raw = client.completions.with_raw_response.create(
                model=model, prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True
            )
            text = "".join(chunk.choices[0].text for chunk in raw.parse())
            seen.append((int(raw.headers["x-weights-seq"]), model, prompt, text))
    return seen


def said_at(state: dict[str, torch.Tensor], model: str, prompt: str, adapters: list[Path]) -> str:
    """What transformers and peft themselves generate from a state of the ledger."""
    base = llama()
    base.load_state_dict({n: t for n, t in state.items() if not n.startswith("adapter/")})
    served: Any = base
    if model == ADAPTER:
        held = {n: t for n, t in state.items() if n.startswith(f"adapter/{ADAPTER}/")}
        (folder,) = [path for path in adapters if holds(held, path)]
        served = peft_model(folder, base)
    return text_of(greedy(served, tokenizer()(prompt)["input_ids"], TOKENS))


def holds(held: dict[str, torch.Tensor], folder: Path) -> bool:
    """Whether a state's adapter is the one of a folder."""
    given = load_file(folder / "adapter_model.safetensors")
    return all(
        any(mine.shape == theirs.shape and torch.equal(mine, theirs) for mine in held.values())
        for theirs in given.values()
    )


@pytest.mark.soak
def test_everything_at_once_for_ten_minutes(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    adapters = [save_adapter(tmp_path / name, seed) for seed, name in enumerate("ab", 1)]
    folder = save_llama(tmp_path / MODEL)
    server = Server(tmp_path / "data", "--model", str(folder), env={"OMP_NUM_THREADS": "1"})
    server.start()
    over, memory = threading.Event(), []
    http = server.client()
    try:
        process = psutil.Process(server.process.pid)
        first = Writers(http, adapters)
        first.swap()
        first.version()  # every version has the adapter, so its clients always find it
        http.post(f"/v1/models/versions/{first_version(http)}/pin", json={})

        def measure() -> None:
            memory.append(process.memory_info().rss)

        with ThreadPoolExecutor(16) as pool:
            writers = {
                name: pool.submit(repeatedly, over, pause_s, getattr(Writers(http, adapters), name))
                for name, pause_s in (
                    *(("update", 0.1), ("batch", 1.3), ("version", 2.9)),
                    *(("rollback", 3.7), ("swap", 2.3)),
                )
            }
            pool.submit(repeatedly, over, 1.0, measure)
            streams = [pool.submit(stream, server.url, over, n) for n in range(CLIENTS)]
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline and not any(
                task.done() for task in (*writers.values(), *streams)
            ):
                time.sleep(0.2)
            over.set()
            done = {name: task.result() for name, task in writers.items()}
            seen = [reply for task in streams for reply in task.result()]
        assert http.post("/v1/models/verify", json={}).status_code == 200
    finally:
        over.set()
        http.close()
        server.stop()
    with Ledger.open(f"sqlite:///{tmp_path / 'data' / 'ledger.db'}", upgrade=False) as ledger:
        history = ledger.history(MODEL)
        chosen = random.Random(2).sample(seen, min(CHECKED, len(seen)))
        for seq, model, prompt, text in chosen:
            assert said_at(history.state(f"seq:{seq}"), model, prompt, adapters) == text, seq
        report = verify(history)
        assert report.ok, report.problem
    by_reply: dict[tuple[int, str, str], str] = {}
    for seq, model, prompt, text in seen:
        assert by_reply.setdefault((seq, model, prompt), text) == text
    third = len(memory) // 3
    middle, last = statistics.median(memory[third : 2 * third]), statistics.median(memory[-third:])
    sys.__stdout__.write(
        f"\n{len(seen)} streams, {len({seq for seq, *_ in seen})} states seen, {done}, "
        f"{report.events} events, memory {middle / 1e6:.0f} MB in the middle third, "
        f"{last / 1e6:.0f} MB in the last\n"
    )
    assert last < 1.1 * middle


def first_version(http: httpx2.Client) -> str:
    """The version just named."""
    version_id: str = http.get("/v1/models/versions").json()["versions"][0]["version_id"]
    return version_id
