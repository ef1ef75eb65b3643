"""A model that an update makes slow: its weight is how many milliseconds a request takes."""

import time

import torch


class Slowing(torch.nn.Module):
    """Waits for so many milliseconds before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.delay_ms = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(float(self.delay_ms.detach()) / 1000)
        return x + self.delay_ms
