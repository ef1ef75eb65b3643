"""The built-in model: a small classifier of handwritten digits.

Its weights and the held-out images that score every candidate are shipped in `digits.safetensors`,
which `train` made. A data folder that has weights of its own, from releases that trained at first
start, goes on with those.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from weightledger.ledger.monitoring.evaluators.held_out import HeldOut

NAME = "digits"
FILE = Path(__file__).with_name("digits.safetensors")

IMAGES, LABELS = "held_out.images", "held_out.labels"
WHITE = 16  # the largest value of a pixel


def digits_module() -> nn.Module:
    """The untrained network: 64 pixels in [0, 1] → 64 hidden units → 10 class scores."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def load_digits(folder: Path) -> tuple[nn.Module, HeldOut]:
    """The trained model and its evaluator."""
    shipped = load_file(FILE)
    images, labels = shipped.pop(IMAGES), shipped.pop(LABELS)
    own = folder / FILE.name
    module = digits_module()
    module.load_state_dict(load_file(own) if own.exists() else shipped)
    return module.eval(), HeldOut(images.to(torch.float32) / WHITE, labels.to(torch.int64))
