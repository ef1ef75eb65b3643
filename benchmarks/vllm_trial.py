"""What vLLM's own loader refuses, tried inside a real vLLM, and that trying changes nothing.

Run by `make vllm` with the Python of vLLM's environment: the worker is in this process. Each trial
is compared with what loading the same tensors for good does in the end: what is refused there is
refused here. Before and after each trial the model gives the same log probabilities, its parameters
are the same objects with the same bits, and so are the kernels that hold packed weights.

    python -m benchmarks.vllm_trial
"""

import os

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}

import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import load_file
from vllm import LLM, SamplingParams

from benchmarks.vllm_servers import make_model
from weightledger.ledger.errors import WeightsMismatch

AT = "model.layers.1.self_attn."
PROMPTS = [[4, 5, 6], [20, 303, 7, 7, 93]]
Weights = dict[str, torch.Tensor]


def worker_of(llm: LLM) -> Any:
    return llm.llm_engine.model_executor.driver_worker.worker  # type: ignore[union-attr]


def answers(llm: LLM) -> list[Any]:
    """Greedy tokens with their log probabilities."""
    params = SamplingParams(temperature=0, max_tokens=12, logprobs=1)
    prompts: Any = [{"prompt_token_ids": one} for one in PROMPTS]
    told = llm.generate(prompts, params, use_tqdm=False)
    return [[one.outputs[0].token_ids, one.outputs[0].cumulative_logprob] for one in told]


def identity(model: torch.nn.Module) -> list[Any]:
    """Every module's attributes by identity, and the bits of every tensor."""
    seen: list[Any] = []
    for name, module in model.named_modules():
        for held in (module, getattr(module, "quant_method", None)):
            seen += [(name, key, id(value)) for key, value in getattr(held, "__dict__", {}).items()]
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                bits = tensor.detach().contiguous().flatten().view(torch.uint8)
                loader = getattr(tensor, "weight_loader", None)
                told = getattr(loader, "__qualname__", None)
                seen.append((name, key, id(tensor), told, blake3(bits.numpy()).digest()))
        seen.append((name, sorted(module._non_persistent_buffers_set)))
    return seen


def main() -> None:
    folder = Path(tempfile.mkdtemp()) / "tiny"
    make_model(folder, "Qwen2")
    llm = LLM(
        str(folder), enforce_eager=True, max_model_len=256, max_num_seqs=4, enable_lora=True,
        max_lora_rank=8, weight_transfer_config={"backend": "ledger"},
    )  # fmt: skip
    worker = worker_of(llm)
    engine, model = worker.weight_transfer_engine, worker.get_model()
    base: Weights = load_file(folder / "model.safetensors")
    engine.loader.load(list(base.items()))  # as the ledger does when it meets a server: all of it
    before = answers(llm)
    q, k, v = (f"{AT}{part}_proj.weight" for part in "qkv")
    noise = torch.randn(base[q].shape, generator=torch.Generator().manual_seed(0))
    moved = base[q] + noise.to(base[q].dtype)
    biases = {f"{AT}{part}_proj.bias": base[f"{AT}{part}_proj.bias"] + 1 for part in "qkv"}
    norm = {"model.norm.weight": base["model.norm.weight"] * 0.5}
    embedding = {"model.embed_tokens.weight": base["model.embed_tokens.weight"] * 2}
    good: Weights = {q: moved, k: base[k], v: base[v], **biases, **norm, **embedding}
    wrong: dict[str, Weights] = {
        "a name that the model has not": {**good, "model.layers.9.mlp.up_proj.weight": moved},
        "another shape": {**good, "model.norm.weight": torch.ones(7, dtype=moved.dtype)},
        "another shape of a fused part": {**good, q: moved[:, :-1]},
        "too few rows of a fused part": {**good, q: moved[:-1]},
        "a part of a fused module": {q: moved, **biases},
    }
    results: dict[str, Any] = {}

    def attempt(tensors: Weights) -> str | None:
        was = identity(model)
        started, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            engine.loader.attempt(list(tensors.items()))
            said = None
        except WeightsMismatch as error:
            said = str(error)
        took = time.perf_counter() - started
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        require(identity(model) == was, "a trial changed the model")
        require(answers(llm) == before, "a trial changed what is answered")
        results.setdefault("trial_ms", []).append(round(took * 1e3, 2))
        results.setdefault("grown_kib", []).append(grown)
        return said

    require(attempt(good) is None, "what vLLM takes is refused")
    require(attempt(base) is None, "the whole model is refused")
    for what, tensors in wrong.items():
        said = attempt(tensors)
        require(said is not None, f"{what} is not refused")
        results[what] = said
    for what, tensors in wrong.items():  # and for good: vLLM refuses them as well
        try:
            engine.loader.load(list(tensors.items()))
        except Exception as error:  # noqa: BLE001
            results[f"{what}, loaded"] = f"{type(error).__name__}: {error}"
        else:
            require(False, f"vLLM loads {what}")
        engine.loader.load(list(base.items()))
        require(answers(llm) == before, f"{what}: not brought back")
    engine.loader.load(list(good.items()))
    require(answers(llm) != before, "what was tried and then loaded is not shown")
    print(json.dumps(results, indent=2))


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"FAILED: {otherwise}")


if __name__ == "__main__":
    main()
