"""Makes `digits.safetensors`: `python -m weightledger.api.server.digits.train`.

scikit-learn bundles the images (1797 of 8×8 pixels); a fixed split keeps some of them out of
training, and those score every candidate. Training is seeded and runs on one thread. Needs
scikit-learn, which serving does not.
"""

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits as bundled
from torch import nn

from weightledger.api.server.digits import FILE, IMAGES, LABELS, WHITE, digits_module

_SEED = 0
_HELD_OUT_EVERY = 5
_EPOCHS = 60
_BATCH = 64


def main() -> None:
    """Train, and write the file."""
    data = bundled()
    images = torch.tensor(data.data, dtype=torch.float32) / WHITE
    labels = torch.tensor(data.target, dtype=torch.int64)
    held_out = torch.arange(len(labels)) % _HELD_OUT_EVERY == 0
    module = digits_module()
    torch.set_num_threads(1)
    _train(module, images[~held_out], labels[~held_out])
    tensors = dict(module.state_dict())
    tensors[IMAGES] = (images[held_out] * WHITE).to(torch.uint8)
    tensors[LABELS] = labels[held_out].to(torch.uint8)
    save_file(tensors, FILE)


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


if __name__ == "__main__":
    main()
