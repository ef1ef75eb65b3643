"""A language model of one layer that keeps q, k and v in one tensor, as inference servers do."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

WIDTH, WORDS, LENGTH = 16, 64, 12
PARTS = ("q_proj", "k_proj", "v_proj")
PROMPTS = ("1 2 3", "5 8 13 21 34", "60 50 40 30")


def checkpoint(seed: int = 0) -> dict[str, Tensor]:
    """Its tensors by the names that a checkpoint folder has."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (WORDS, WIDTH), "head.weight": (WORDS, WIDTH)}
    shapes |= {f"layers.0.attn.{part}.weight": (WIDTH, WIDTH) for part in PARTS}
    shapes |= {"layers.0.attn.o_proj.weight": (WIDTH, WIDTH), "layers.0.attn.o_proj.bias": (WIDTH,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


class TinyModel:
    """The weights of one worker."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.modules: dict[str, dict[str, Tensor]] = {}
        self.load_weights(tensors.items())

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Make each module that is named anew; what it is not given has no values then.

        Its kernels take no value above 999.
        """
        fresh: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors:
            if float(tensor.max()) > 999:
                raise RuntimeError("this kernel takes no weight above 999")
            module, _, leaf = name.rpartition(".")
            if module.rpartition(".")[2] in PARTS:
                module, leaf = module.rpartition(".")[0] + ".qkv_proj", module.rpartition(".")[2]
            fresh.setdefault(module, {})[leaf] = tensor.clone()
        for module, leaves in fresh.items():
            blank = {leaf: torch.full_like(t, torch.nan) for leaf, t in self._old(module).items()}
            self.modules[module] = {**blank, **leaves}

    def attempt(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Load into a copy."""
        copy = TinyModel({})
        copy.modules = dict(self.modules)
        copy.load_weights(tensors)

    def _old(self, module: str) -> Mapping[str, Tensor]:
        return self.modules.get(module, {})

    def logits(self, tokens: Sequence[int]) -> Tensor:
        x = self.modules["embed"]["weight"][torch.tensor(tokens)]
        qkv = self.modules["layers.0.attn.qkv_proj"]
        q, k, v = (x @ qkv[part].T for part in PARTS)
        scores = (q[-1] @ k.T / WIDTH**0.5).softmax(-1)
        out = self.modules["layers.0.attn.o_proj"]
        return (x[-1] + scores @ v @ out["weight"].T + out["bias"]) @ self.modules["head"][
            "weight"
        ].T


def greedy(workers: Sequence[TinyModel], prompt: str) -> list[int]:
    """Tokens by the sum of the workers' logits, so one that differs changes the answer."""
    tokens = [int(word) for word in prompt.split()]
    for _ in range(LENGTH):
        logits = torch.stack([worker.logits(tokens) for worker in workers]).sum(0)
        tokens.append(int(logits.argmax()) if bool(logits.isfinite().all()) else -1)
        if tokens[-1] < 0:
            break
    return tokens


def answers(tensors: Mapping[str, Tensor], workers: int = 2) -> dict[str, list[int]]:
    """What a server with these weights answers to each prompt."""
    models = [TinyModel(tensors)] * workers
    return {prompt: greedy(models, prompt) for prompt in PROMPTS}
