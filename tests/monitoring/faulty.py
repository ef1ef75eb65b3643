"""A model to serve whose faults are in its weights, so that updates bring them and take them."""

import time

import torch

_BASE_S = 0.003
_LEAKED: list[bytes] = []


class Faulty(torch.nn.Module):
    """Slower by `delay` per cent; raises on inputs above `1 - fails`; leaks `leak` MiB a time; of
    rows in [0, 1] a share of `wrong` more than one in twenty gets the wrong sign."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
        self.delay = torch.nn.Parameter(torch.zeros(1))
        self.fails = torch.nn.Parameter(torch.zeros(1))
        self.leak = torch.nn.Parameter(torch.zeros(1))
        self.wrong = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(_BASE_S * (1 + self.delay.item() / 100))
        if (x > 1 - self.fails).any():
            raise RuntimeError("an input that this state cannot take")
        if self.leak.item() > 0:
            _LEAKED.append(bytes(int(self.leak.item() * 2**20)))
        sign = torch.where(x < 0.05 + self.wrong, -1.0, 1.0)
        return sign * (x + self.weight.sum())


def factory() -> torch.nn.Module:
    return Faulty()
