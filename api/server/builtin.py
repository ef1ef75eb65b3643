"""The built-in model: a small classifier of handwritten digits, trained at first start.

scikit-learn bundles the images (1797 of 8×8 pixels); a fixed split keeps some of them out of
training, and those score every candidate. Training is seeded, so two fresh folders start alike.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weightledger.ledger.monitoring.evaluation import HeldOut

NAME = "digits"

_FILE = "digits.safetensors"
_SEED = 0
_HELD_OUT_EVERY = 5
_EPOCHS = 60
_BATCH = 64


def digits_module() -> nn.Module:
    """The untrained network: 64 pixels in [0, 1] → 64 hidden units → 10 class scores."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def load_digits(folder: Path) -> tuple[nn.Module, HeldOut]:
    """The trained model and its evaluator; the first weights are kept in `folder`."""
    images, labels = _data()
    held_out = torch.arange(len(labels)) % _HELD_OUT_EVERY == 0
    module = digits_module()
    path = folder / _FILE
    if path.exists():
        module.load_state_dict(load_file(path))
    else:
        threads = torch.get_num_threads()
        # So small a network trains faster on one thread, and alike on every machine.
        torch.set_num_threads(1)
        _train(module, images[~held_out], labels[~held_out])
        torch.set_num_threads(threads)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        save_file(module.state_dict(), partial)
        partial.replace(path)
    return module.eval(), HeldOut(images[held_out], labels[held_out])


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits as bundled

    data = bundled()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    return images, torch.tensor(data.target, dtype=torch.int64)


def _train(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for parameter in module.parameters():
            bound = parameter.shape[-1] ** -0.5
            parameter.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(_EPOCHS):
        shuffled = torch.randperm(len(labels), generator=generator)
        for start in range(0, len(labels), _BATCH):
            batch = shuffled[start : start + _BATCH]
            optimizer.zero_grad()
            torch.autograd.backward(
                nn.functional.cross_entropy(module(images[batch]), labels[batch])
            )
            optimizer.step()
    for parameter in module.parameters():
        parameter.grad = None
