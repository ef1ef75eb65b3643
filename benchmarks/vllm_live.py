"""A real vLLM, driven from the ledger: what it answers, through kills, and how long it pauses.

Run by `make vllm`. Every check compares completions token for token and log probability for log
probability. Prints what was found and writes it to benchmarks/results/vllm.json.
"""

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import torch
from safetensors.torch import save, save_file

from benchmarks import vllm_servers
from benchmarks.vllm_servers import Wire, post
from weightledger import Ledger
from weightledger.ledger.engines.vllm.adapters import write_adapter
from weightledger.ledger.events import Event

RESULTS = Path(__file__).parent / "results" / "vllm.json"
PROMPTS = ["w1 w2 w3", "w17 w300 w4 w4 w90", "w200 w201 w202 w203 w204 w205 w206 w207"]
TENSOR = "model.layers.{}.self_attn.q_proj.weight"
GROUP = ("q_proj", "k_proj", "v_proj")
ROUNDS = 30


class Live:
    """The three processes, and what the model answered at each state so far."""

    def __init__(self, venv: Path, folder: Path) -> None:
        self.model = folder / "tiny-llama"
        vllm_servers.make_model(self.model)
        self.vllm = vllm_servers.vllm(venv, self.model, folder / "vllm.log")
        self.wire = Wire(int(self.vllm.url.rpartition(":")[2]))
        self.data = folder / "data"
        log = folder / "weightledger.ledger.log"
        self.ledger = vllm_servers.ledger(self.wire.url, self.model, self.data, log)
        self.answers: dict[str, Any] = {}

    def without_wire(self, log: Path) -> None:
        """Go on with a server of ours that talks to vLLM directly."""
        self.ledger.kill()
        self.ledger = vllm_servers.ledger(self.vllm.url, self.model, self.data, log)
        self.ledger.start("/readyz")

    def completions(self, model: str = "m") -> list[Any]:
        """Greedy tokens and their log probabilities, for each prompt."""
        answers = []
        for prompt in PROMPTS:
            body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0}
            answer = post(f"{self.vllm.url}/v1/completions", {**body, "logprobs": 3})
            answer.raise_for_status()
            logprobs = answer.json()["choices"][0]["logprobs"]
            answers.append([logprobs["tokens"], logprobs["token_logprobs"]])
        return answers

    def check(self) -> str:
        """The state both sides name is one, and answers as it did whenever it was live before."""
        health = httpx2.get(f"{self.ledger.url}/health").json()
        version = httpx2.get(f"{self.vllm.url}/weight_info").json()["weight_version"]
        expected = f"ledger:{health['seq']}:{health['digest'][:16]}"
        require(version == expected, f"vLLM shows {version}, the ledger {expected}")
        answers = self.completions()
        known = self.answers.setdefault(health["digest"], answers)
        require(answers == known, f"{version} answers otherwise than before")
        return str(health["digest"])

    def update(self, layer: int, scale: float = 1.0, timeout_s: float = 60) -> httpx2.Response:
        """Add noise to the queries of a layer: one tensor of a fused module of vLLM's."""
        noise = torch.randn(256, 256, generator=torch.Generator().manual_seed(layer))
        body = {"parameter_name": TENSOR.format(layer), "learning_rate": 1.0}
        body["update_data"] = (noise * scale).tolist()
        url = f"{self.ledger.url}/v1/models/incremental_update"
        return httpx2.post(url, json=body, timeout=timeout_s)

    def rollback(self, position: str) -> None:
        answer = post(f"{self.ledger.url}/v1/models/rollback", {"version_id": position})
        require(answer.status_code == 200, answer.text)

    def head(self) -> int:
        items = httpx2.get(f"{self.ledger.url}/v1/models/updates?limit=1").json()["data"]
        return int(items[0]["seq"])

    def events_since(self, seq: int) -> list[Event]:
        with Ledger.open(f"sqlite:///{self.data / 'ledger.db'}") as ledger:
            events = ledger.history(self.model.name).events(newest_first=False)
        return [event for event in events if event.seq > seq]

    def head_of_log(self) -> int:
        return self.events_since(-1)[-1].seq

    def become_ready(self) -> float:
        started = time.perf_counter()
        while httpx2.get(f"{self.ledger.url}/readyz").status_code != 200:
            require(time.perf_counter() - started < 60, "the replica stays fenced")
            time.sleep(0.02)
        return time.perf_counter() - started

    def killed_at(self, request: str, kill: Callable[[], None], layer: int) -> None:
        """Update a layer, and kill a process when our server sends `request` to vLLM."""
        self.wire.stop_at(request)
        updating = threading.Thread(target=self._update_in_vain, args=(layer,))
        updating.start()
        require(self.wire.held.wait(60), f"{request} was never sent")
        kill()
        updating.join()

    def _update_in_vain(self, layer: int) -> None:
        try:
            answer = self.update(layer)
        except httpx2.HTTPError:
            return  # our server was killed
        require(answer.status_code == 503, f"expected 503, got {answer.status_code} {answer.text}")


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"FAILED: {otherwise}")


def updates_and_rollback(live: Live) -> dict[str, Any]:
    base = live.check()
    require(live.update(0).json()["success"], "the update was refused")
    changed = live.check()
    require(live.answers[base] != live.answers[changed], "the update changed no answer")
    require(live.update(1).json()["success"], "the second update was refused")
    live.check()
    live.rollback("seq:0")
    require(live.check() == base, "the rollback went elsewhere")
    live.rollback("head~2")
    live.check()
    return {"states": len(live.answers), "tokens_compared_each": 16 * len(PROMPTS)}


COLLECTED = (
    *("latency_ms", "queue_ms", "time_to_first_token_ms", "inter_token_latency_ms"),
    *("tokens_per_second", "throughput", "kv_cache_usage"),
)


def collected(live: Live) -> dict[str, Any]:
    """What vLLM says of itself, with the ledger's: every figure, at the states that were live."""
    asked = f"{live.ledger.url}/v1/models/metrics"
    query = {"source": "server", "by": "all"}
    deadline = time.monotonic() + 60  # it is read every ten seconds, and twice to know a difference
    known: dict[str, Any] = {}
    while not set(COLLECTED) <= known.keys():
        require(time.monotonic() < deadline, f"of {COLLECTED} there are only {sorted(known)}")
        live.completions()
        reply = httpx2.get(asked, params=query).raise_for_status().json()
        require(
            reply["collection"]["server_fault"] is None, str(reply["collection"]["server_fault"])
        )
        known = {one["metric"]: one for one in reply["data"]}
    return {metric: {"count": one["count"], "mean": one["mean"]} for metric, one in known.items()}


def batches_and_versions(live: Live) -> dict[str, Any]:
    """Many tensors in one event, a name for the state, another update, and back to the name."""
    before = live.check()
    generator = torch.Generator().manual_seed(9)
    sent = {
        TENSOR.format(0): torch.randn(256, 256, generator=generator),
        TENSOR.format(2): torch.randn(100, generator=generator),
        f"{TENSOR.format(2)}@indices": torch.randperm(256 * 256, generator=generator)[:100],
        f"{TENSOR.format(3)}@a": torch.randn(256, 4, generator=generator),
        f"{TENSOR.format(3)}@b": torch.randn(4, 256, generator=generator),
    }
    answer = httpx2.post(
        f"{live.ledger.url}/v1/models/batch_update?learning_rate=0.5",
        content=save(sent),
        headers={"content-type": "application/octet-stream"},
        timeout=60,
    )
    require(answer.status_code == 200 and answer.json()["success"], answer.text)
    named = live.check()
    require(live.answers[before] != live.answers[named], "the batch changed no answer")
    url = f"{live.ledger.url}/v1/models/create_version"
    version = post(url, {"description": "after the batch"}).json()["data"]["version_id"]
    require(live.update(1).json()["success"], "the update was refused")
    require(live.check() != named, "the update is not shown")
    live.rollback(version)
    require(live.check() == named, "the rollback went elsewhere")
    return {"tensors_in_one_event": 3}


def adapters(live: Live, folder: Path) -> dict[str, Any]:
    """Load, load others under the same name, roll back, unload: through the ledger's routes."""
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 64}
    config |= {"target_modules": ["q_proj"], "bias": "none", "base_model_name_or_path": None}
    made = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in range(4):
            at = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            tensors[f"{at}.lora_A.weight"] = torch.randn(4, 256, generator=generator)
            tensors[f"{at}.lora_B.weight"] = torch.randn(256, 4, generator=generator)
        made.append(write_adapter(folder / "given", "style", tensors, config))
    without = live.completions()

    def load(path: Path, *, again: bool) -> list[Any]:
        body = {"lora_name": "style", "lora_path": str(path), "load_inplace": again}
        answer = post(f"{live.ledger.url}/v1/load_lora_adapter", body)
        require(answer.status_code == 200, answer.text)
        live.check()
        return live.completions("style")

    first = load(made[0], again=False)
    seq = live.head()
    second = load(made[1], again=True)
    require(first != without, "the adapter changes no answer")
    require(first != second, "the second adapter answers as the first: stale")
    live.rollback(f"seq:{seq}")
    require(live.completions("style") == first, "rolled back, the first answers otherwise")
    taken = {"lora_name": "style", "lora_path": str(made[1])}
    refused = post(f"{live.ledger.url}/v1/load_lora_adapter", taken)
    require(refused.status_code == 400, f"a name in use: {refused.status_code} {refused.text}")
    gone = post(f"{live.ledger.url}/v1/unload_lora_adapter", {"lora_name": "style"})
    require(gone.status_code == 200, gone.text)
    missing = post(f"{live.vllm.url}/v1/completions", {"model": "style", "prompt": "w1"})
    require(missing.status_code == 404, f"unloaded, yet {missing.status_code}")
    require(live.completions() == without, "the base model answers otherwise than before")
    live.rollback(f"seq:{seq}")
    require(live.completions("style") == first, "the rollback did not bring the adapter back")
    live.rollback("seq:0")
    live.check()
    return {"loads": 2, "rollbacks": 3}


def kills(live: Live) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, request in (
        ("our server, between append and push", "POST /init_weight_transfer_engine"),
        ("our server, with the new weights loaded and unnamed", "POST /finish_weight_update"),
    ):
        before, seq = live.check(), live.head()
        live.killed_at(request, live.ledger.kill, layer=2)
        found[name] = {"ready_again_s": live.ledger.start("/readyz")}
        require(live.head() == seq + 1, "the event is not there")
        require(live.check() != before, "the event is not shown")
    before, seq = live.check(), live.head()
    live.killed_at("POST /finish_weight_update", live.vllm.kill, layer=3)
    require(httpx2.get(f"{live.ledger.url}/readyz").status_code == 503, "not fenced")
    refused = live.update(1)
    require(refused.status_code == 503, f"a fenced replica took an update: {refused.text}")
    require(live.head() == seq + 1, "a refused update left an event")
    found["vLLM, in the middle of an update"] = {
        "vllm_starts_s": live.vllm.start("/health"),
        "ready_after_that_s": live.become_ready(),
    }
    require(live.check() != before, "the event is not shown")
    before = live.check()
    live.vllm.kill()
    while httpx2.get(f"{live.ledger.url}/readyz").status_code == 200:
        time.sleep(0.02)
    live.vllm.start("/health")
    found["vLLM, at rest"] = {"ready_after_start_s": live.become_ready()}
    require(live.check() == before, "vLLM came back with another state")
    return found


def gate(live: Live, folder: Path) -> dict[str, Any]:
    """A writer elsewhere, a replica beside vLLM: what vLLM would not load is rejected by name."""
    live.ledger.kill()
    base, seq = live.completions(), live.head_of_log()
    live.ledger = vllm_servers.headless(live.model, live.data, folder / "writer.log")
    beside = vllm_servers.sidecar(live.vllm.url, live.model, live.data, folder / "sidecar.log")
    try:
        live.ledger.start("/readyz")
        beside.start("/readyz")
        require(live.completions() == base, "the replica begins with another state")
        refused = live.update(0, 1000.0)
        message = str(refused.json())
        require("'gpu-1'" in message and "no weight above 900" in message, message)
        require(live.completions() == base, "a refused update changed what is answered")
        (event,) = live.events_since(seq)
        require(event.kind == "update_rejected", f"recorded as {event.kind}")
        started = time.perf_counter()
        require(live.update(0).json()["success"], "an update that vLLM takes is refused")
        took_s = time.perf_counter() - started
        event = live.events_since(seq)[-1]
        prepared = event.body["evidence"]["prepared"]
        while httpx2.get(f"{beside.url}/readyz").json().get("seq") != event.seq:
            time.sleep(0.02)
        version = httpx2.get(f"{live.vllm.url}/weight_info").json()["weight_version"]
        require(version == f"ledger:{event.seq}:{event.state_after.hex()[:16]}", version)
        require(live.completions() != base, "the update is not shown")
        return {"reason": message, "prepared": prepared, "update_prepared_and_recorded_s": took_s}
    finally:
        beside.kill()


def pauses(live: Live, folder: Path) -> dict[str, Any]:
    """Our update of one fused group beside vLLM's own reload of the same three tensors."""
    live.without_wire(folder / "direct.log")
    ours, staging, theirs = [], [], []
    for round_ in range(ROUNDS):
        require(live.update(0, 0.001).status_code == 200, "the update failed")
        engine = httpx2.get(f"{live.ledger.url}/health").json()["engine"]
        ours.append(engine["pause_ms"])
        staging.append(engine["stage_ms"])
        theirs.append(_their_update(live, folder / f"own-{round_}"))
    live.check()
    return {
        "ours_pause_ms": summary(ours),
        "ours_reading_before_it_ms": summary(staging),
        "vllm_pause_reload_reset_resume_ms": summary(theirs),
        "ratio_of_medians": round(statistics.median(ours) / statistics.median(theirs), 3),
    }


def _their_update(live: Live, folder: Path) -> float:
    """Milliseconds of pause, reload_weights, reset_prefix_cache, resume, for the same tensors."""
    names = [TENSOR.format(0).replace("q_proj", part) for part in GROUP]
    with Ledger.open(f"sqlite:///{live.data / 'ledger.db'}") as ledger:
        whole = ledger.history(live.model.name).state()
    folder.mkdir()
    save_file({name: whole[name] for name in names}, folder / "model.safetensors")
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    with httpx2.Client(base_url=live.vllm.url, timeout=60) as client:
        client.get("/weight_info")  # the connection is there already, as our driver's is
        started = time.perf_counter()
        for path, sent in (
            ("/pause?mode=wait&clear_cache=true", None),
            ("/collective_rpc", body),
            ("/reset_prefix_cache", None),
            ("/resume", None),
        ):
            client.post(path, json=sent).raise_for_status()
        return (time.perf_counter() - started) * 1e3


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 2),
        "min": round(ordered[0], 2),
        "max": round(ordered[-1], 2),
        "n": len(ordered),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, required=True)
    options = parser.parse_args()
    version = subprocess.run(
        [options.venv / "bin" / "python", "-c", "import vllm; print(vllm.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[-1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        live = Live(options.venv, folder)
        results: dict[str, Any] = {"vllm": version, "machine": platform.platform()}
        try:
            results["vllm_starts_s"] = live.vllm.start("/health")
            results["ledger_starts_s"] = live.ledger.start("/readyz")
            for title, work in (
                ("updates_and_rollback", lambda: updates_and_rollback(live)),
                ("collected", lambda: collected(live)),
                ("batches_and_versions", lambda: batches_and_versions(live)),
                ("adapters", lambda: adapters(live, folder)),
                ("kills", lambda: kills(live)),
                ("gate", lambda: gate(live, folder)),
                ("pauses", lambda: pauses(live, folder)),
            ):
                results[title] = work()
                print(title, json.dumps(results[title], indent=2), flush=True)
        finally:
            live.ledger.kill()
            live.vllm.kill()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(f"all held; written to {RESULTS}")


if __name__ == "__main__":
    main()
