"""Evaluators: what scores a model state before it is visible."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

Evaluator: TypeAlias = Callable[[torch.nn.Module], Mapping[str, float]]
"""Takes a module in the state to judge; gives metrics such as {"accuracy": 0.97}.

The module is the evaluator's own: a copy, weights included, that shares nothing with what is
served. Whatever an evaluator does to it, then or later, changes nothing else.
"""


class HeldOut:
    """Accuracy on held-out examples.

    `inputs` is what the module takes, [examples, …]; `labels` are class numbers, [examples].
    The module gives scores, [examples, classes].
    """

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self._inputs = inputs
        self._labels = labels

    def __call__(self, module: torch.nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            predicted = module(self._inputs).argmax(dim=-1)
        return {"accuracy": float((predicted == self._labels).double().mean())}
