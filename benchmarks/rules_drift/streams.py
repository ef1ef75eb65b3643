"""A trained network, and a stream of samples that drifts away from what it was trained on."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

TRAINED, STREAM, CLASSES, HIDDEN = 700, 1400, 10, 128
DRIFTS = ("turning", "swapped", "none")
FURTHEST_DEGREES = 60


@dataclass(frozen=True)
class Task:
    """The network, the stream, and what the network was trained on; images are [samples, 64]."""

    module: nn.Sequential
    images: torch.Tensor
    labels: torch.Tensor
    seen: torch.Tensor
    seen_labels: torch.Tensor

    def hidden(self, images: torch.Tensor) -> torch.Tensor:
        """What the last layer gets to see, [samples, 128]."""
        with torch.no_grad():
            activity: torch.Tensor = torch.relu(self.module[0](images))
        return activity

    @property
    def readout(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight [10, 128] and bias [10] of the last layer, as trained; copies."""
        return self.module[2].weight.detach().clone(), self.module[2].bias.detach().clone()


@cache
def task(drift: str, seed: int) -> Task:
    """All of it drawn from the seed."""
    drawn = np.random.default_rng(seed)
    data = load_digits()
    order = drawn.permutation(len(data.target))
    pixels, labels = data.images[order] / 16, data.target[order]
    module = trained(pixels[:TRAINED], labels[:TRAINED], seed)
    chosen = TRAINED + drawn.permutation(STREAM) % (len(order) - TRAINED)
    swaps = drawn.permutation(64)
    images = [
        drifted(pixels[number], drift, place / STREAM, swaps) for place, number in enumerate(chosen)
    ]
    return Task(
        module,
        torch.tensor(np.array(images), dtype=torch.float32),
        torch.tensor(labels[chosen]),
        torch.tensor(pixels[:TRAINED].reshape(TRAINED, 64), dtype=torch.float32),
        torch.tensor(labels[:TRAINED]),
    )


def drifted(image: Any, drift: str, far: float, swaps: Any) -> Any:
    """An 8 × 8 image that has drifted by `far` in [0, 1), flat."""
    if drift == "turning":
        return rotate(image, FURTHEST_DEGREES * far, reshape=False, order=1).ravel()
    flat = image.ravel().copy()
    if drift == "swapped":  # a growing share of the pixels is where the permutation puts it
        moved = swaps[: 2 * int(32 * far)]
        flat[moved] = image.ravel()[np.roll(moved, len(moved) // 2)]
    return flat


def trained(pixels: Any, labels: Any, seed: int) -> nn.Sequential:
    """30 epochs of Adam on the cross-entropy."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    x = torch.tensor(pixels.reshape(len(pixels), 64), dtype=torch.float32)
    wanted = torch.tensor(labels)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(30):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(module(x[batch]), wanted[batch]).backward()
            optimizer.step()
    return module.eval()
