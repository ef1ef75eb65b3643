"""Held-out examples of a file: accuracy of a classifier, squared error of a regression.

The file is safetensors with `inputs`, [examples, …], and `labels` (class numbers, [examples]) or
`targets` ([examples, …], as the module gives them).
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.evaluation import Scores

BATCH = 256


class HeldOut:
    """Accuracy on held-out examples, with which of them were right.

    `inputs` is what the module takes, [examples, …]; `labels` are class numbers, [examples].
    The module gives scores, [examples, classes]. One that is not finite makes its example wrong.
    """

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self._inputs = inputs
        self._labels = labels

    def __call__(self, module: torch.nn.Module) -> Scores:
        output = _outputs(module, self._inputs)
        if output.ndim != 2 or len(output) != len(self._labels):
            raise InvalidRequest(
                f"a classifier gives [{len(self._labels)}, classes], got {tuple(output.shape)}"
            )
        # A number times zero is zero, and anything else is NaN: half as many steps as `isfinite`.
        finite = (output * 0).sum(dim=-1) == 0
        right = (finite & (output.argmax(dim=-1) == self._labels)).double()
        return Scores({"accuracy": float(right.mean())}, {"accuracy": right})


class Regression:
    """Mean squared error on held-out examples, `error`; an item's score is minus its own.

    `targets` are as the module gives them, [examples, …].
    """

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self._inputs = inputs
        self._targets = targets.double()

    def __call__(self, module: torch.nn.Module) -> Scores:
        output = _outputs(module, self._inputs).double()
        if output.shape != self._targets.shape:
            raise InvalidRequest(
                f"the targets are {tuple(self._targets.shape)}, the model gave"
                f" {tuple(output.shape)}"
            )
        errors = (output - self._targets).square().flatten(1).mean(dim=1)
        return Scores({"error": float(errors.mean())}, {"error": -errors})


def held_out(file: Path) -> HeldOut:
    """`held-out:FILE`."""
    inputs, labels = _read(file, "labels")
    if labels.ndim != 1 or labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise InvalidRequest(
            f"{file}: labels are class numbers, [examples], got {labels.dtype}"
            f" {tuple(labels.shape)}"
        )
    return HeldOut(inputs, labels.to(torch.int64))


def regression(file: Path) -> Regression:
    """`regression:FILE`."""
    inputs, targets = _read(file, "targets")
    if not targets.dtype.is_floating_point or targets.ndim < 1:
        raise InvalidRequest(f"{file}: targets are numbers, [examples, …], got {targets.dtype}")
    # One number an example is what a module gives as [examples, 1].
    return Regression(inputs, targets if targets.ndim > 1 else targets.unsqueeze(1))


def _read(file: Path, answers: str) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise InvalidRequest(f"{file} is no safetensors file that can be read: {error}") from None
    missing = {"inputs", answers} - tensors.keys()
    if missing:
        raise InvalidRequest(
            f"{file} has {', '.join(sorted(tensors)) or 'no tensors'}; expected inputs and"
            f" {answers}"
        )
    inputs, right = tensors["inputs"], tensors[answers]
    if not inputs.ndim or not right.ndim or len(inputs) != len(right) or not len(inputs):
        raise InvalidRequest(
            f"{file}: inputs and {answers} are of the same examples, at least one, got"
            f" {tuple(inputs.shape)} and {tuple(right.shape)}"
        )
    return inputs, right


def _outputs(module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    where = next((one.device for one in module.parameters()), inputs.device)
    with torch.inference_mode():
        starts = range(0, len(inputs), BATCH)
        parts = [module(inputs[at : at + BATCH].to(where)).cpu() for at in starts]
    return torch.cat(parts)
