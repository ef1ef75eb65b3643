"""What is recorded: four models and the way each of them changes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Goals:
    """The figures to hold, where there are any.

    `record` is in times of hashing the model on one thread, `per_weight` in times of what entropy
    asks for, `rollback` in times of a copy, the scatters and hashing on one thread, `memory` in
    times of the touched tensors. Those of restoring are in times of loading and hashing the
    safetensors file: few deltas, many of them, and a state of few or many with the page cache
    dropped for both.
    """

    record: float
    per_weight: float
    rollback: float = 1.0
    restore_few: float = 4.5
    restore_many: float = 10.0
    restore_cold: float = 2.0
    memory: float | None = None


class Workload(Protocol):
    """A model that is being trained: `step` moves `state` in place, as one update.

    `rounds` updates are recorded by every system, `moves` more are rolled back.
    """

    title: str
    state: State
    rounds: int
    moves: int
    goals: Goals

    def step(self) -> None:
        """Change the weights by one update."""


class Scattered:
    """A share of each tensor's weights moves by about 1e-3, at random positions."""

    share = 0.01

    def __init__(
        self,
        title: str,
        tensors: int,
        shape: tuple[int, int],
        rounds: int,
        moves: int,
        goals: Goals,
    ) -> None:
        self.title, self.rounds, self.moves, self.goals = title, rounds, moves, goals
        self._generator = torch.Generator().manual_seed(0)
        self.state = {
            f"layer{n}": torch.randn(shape, generator=self._generator) * 0.02
            for n in range(tensors)
        }

    def step(self) -> None:
        for tensor in self.state.values():
            count = int(tensor.numel() * self.share)
            where = torch.randint(0, tensor.numel(), (count,), generator=self._generator)
            tensor.view(-1)[where] += 1e-3 * torch.randn(count, generator=self._generator)


class RoundedAdam:
    """Reinforcement learning with bf16 weights: Adam moves fp32 masters, rounding hides most of it.

    Gradients are a fixed direction under noise three times as large. At this rate a few per cent of
    the bf16 weights change with each step, by one unit in the last place. Noise is a stretch of one
    long random tensor, from a new place each time: drawing it anew takes longer than Adam does.
    """

    title = "RL: 100 MB bf16, fp32 masters moved by Adam at 5e-6"
    rounds, moves = 7, 10
    goals = Goals(record=4.0, per_weight=1.06)
    _tensors, _shape, _warm_up = 25, (1000, 2000), 5
    _rate, _mean, _square, _epsilon = 5e-6, 0.9, 0.999, 1e-8

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(1)
        self._size = math.prod(self._shape)
        self._long = torch.randn(4 * self._size, generator=self._generator)
        self._masters = [0.02 * self._noise() for _ in range(self._tensors)]
        self._directions = [0.3 * self._noise() for _ in range(self._tensors)]
        self._means = [torch.zeros(self._shape) for _ in range(self._tensors)]
        self._squares = [torch.zeros(self._shape) for _ in range(self._tensors)]
        self._steps = 0
        self.state = {f"layer{n}": w.bfloat16() for n, w in enumerate(self._masters)}
        for _ in range(self._warm_up):
            self.step()

    def step(self) -> None:
        self._steps += 1
        mean_bias = 1 - self._mean**self._steps
        square_bias = 1 - self._square**self._steps
        for tensor, master, direction, mean, square in zip(
            self.state.values(),
            self._masters,
            self._directions,
            self._means,
            self._squares,
            strict=True,
        ):
            gradient = self._noise() + direction
            mean.lerp_(gradient, 1 - self._mean)
            square.mul_(self._square).addcmul_(gradient, gradient, value=1 - self._square)
            scale = (square / square_bias).sqrt_().add_(self._epsilon)
            master.addcdiv_(mean, scale, value=-self._rate / mean_bias)
            tensor.copy_(master)

    def _noise(self) -> torch.Tensor:
        most = len(self._long) - self._size
        start = int(torch.randint(0, most, (), generator=self._generator))
        return self._long[start : start + self._size].view(self._shape)


class Unfrozen:
    """Fine-tuning of the last layers: each of their weights moves by about 1e-4 of itself."""

    title = "dense: 100 MB fp32, every weight of 5 of the 25 tensors moves by 1e-4 of itself"
    rounds, moves = 7, 10
    goals = Goals(record=2.6, per_weight=1.02)
    _tensors, _unfrozen, _shape, _relative = 25, 5, (1000, 1000), 1e-4

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(2)
        self.state = {f"layer{n}": 0.02 * self._noise() for n in range(self._tensors)}

    def step(self) -> None:
        for tensor in list(self.state.values())[-self._unfrozen :]:
            tensor.mul_(self._noise().mul_(self._relative).add_(1.0))

    def _noise(self) -> torch.Tensor:
        return torch.randn(self._shape, generator=self._generator)


def workload_l() -> Workload:
    """Workload L: 25 tensors of a million weights, as a layer is initialised."""
    return Scattered(
        "L: 100 MB fp32, 25 tensors, 1 % of the weights an update",
        tensors=25,
        shape=(1000, 1000),
        rounds=11,
        moves=50,
        goals=Goals(record=2.6, per_weight=1.02),
    )


def large() -> Workload:
    """Eight tensors of 128 MiB."""
    return Scattered(
        "large: 1 GiB fp32, 8 tensors, 1 % of the weights an update",
        tensors=8,
        shape=(4096, 8192),
        rounds=3,
        moves=3,
        goals=Goals(record=2.5, per_weight=1.02, memory=1.5),
    )


WORKLOADS: Mapping[str, Callable[[], Workload]] = {
    "L": workload_l,
    "rl": RoundedAdam,
    "dense": Unfrozen,
    "large": large,
}


def size_of(state: State) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in state.values())
