"""Tensors and configurations as an event says them: JSON."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import torch

from weightledger import tensor_digest
from weightledger.rules.errors import RuleError


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """What an event says of tensors: digest, dtype and shape of each."""
    return {
        name: {
            "digest": tensor_digest(tensor).hex(),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
        }
        for name, tensor in tensors.items()
    }


def described(config: Any) -> dict[str, Any] | None:
    """A selector, gate or feedback as JSON: its kind and its fields."""
    if config is None:
        return None
    if not is_dataclass(config) or isinstance(config, type):
        raise RuleError(f"a selector is a dataclass, got {type(config).__name__}", param="selector")
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
    }
    return {"kind": type(config).__name__, **fields}
