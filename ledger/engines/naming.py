"""Which tensors of a module are its state, and under which names.

Names are those of `named_parameters` and `named_buffers`: parameters and persistent buffers, in the
order of the module tree. A tied tensor has one name, its first; the others are aliases.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from ledger.errors import InvalidRequest, UnsupportedModel
from ledger.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Naming:
    """The tensors of a state by name, their specs, and the aliases of tied ones."""

    tensors: Mapping[str, torch.Tensor]
    specs: Mapping[str, TensorSpec]
    aliases: Mapping[str, str]


def of_module(module: nn.Module) -> Naming:
    """The state of a module; UnsupportedModel names a tensor that cannot be held."""
    named: list[tuple[str, torch.Tensor]] = []
    for prefix, part in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        transient = part._non_persistent_buffers_set
        named += [(dot + name, p) for name, p in part._parameters.items() if p is not None]
        named += [
            (dot + name, b)
            for name, b in part._buffers.items()
            if b is not None and name not in transient
        ]
        _refuse_extra_state(prefix, part)
    return of_tensors(named)


def of_tensors(named: list[tuple[str, torch.Tensor]]) -> Naming:
    """The state made of these tensors; one tensor under two names is tied."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in named:
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor
    specs = {name: TensorSpec.of(name, tensor) for name, tensor in tensors.items()}
    _refuse_overlap(tensors)
    return Naming(tensors, specs, aliases)


def check(specs: Mapping[str, TensorSpec], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise InvalidRequest unless each tensor is one of the state, of its dtype and shape."""
    for name, tensor in tensors.items():
        spec = specs.get(name)
        if spec is None:
            raise InvalidRequest(f"the model has no tensor {name!r}", param=name)
        got = TensorSpec.of(name, tensor)
        if got != spec:
            raise InvalidRequest(
                f"tensor {name!r} is {spec.dtype} {spec.shape}, got {got.dtype} {got.shape}",
                param=name,
            )


def like(live: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` with the device and strides of `live`, so that kernels compute the same bits."""
    if new.device == live.device and new.stride() == live.stride():
        return new
    return torch.empty_like(live, requires_grad=False).copy_(new)


def _refuse_overlap(tensors: Mapping[str, torch.Tensor]) -> None:
    """Tensors that share memory without being one would change together, unrecorded."""
    spans = sorted(
        (
            (t.device, t.untyped_storage().data_ptr(), *_span(t), name)
            for name, t in tensors.items()
            if t.numel()
        ),
        key=lambda span: (str(span[0]), span[1], span[2]),
    )
    for one, other in pairwise(spans):
        if one[:2] == other[:2] and other[2] < one[3]:
            raise UnsupportedModel(
                f"tensors {one[4]!r} and {other[4]!r} share memory without being one parameter; "
                "tie them by assigning the same Parameter"
            )


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last byte, within its storage, that a tensor may occupy."""
    itemsize = tensor.element_size()
    start = int(tensor.storage_offset()) * itemsize
    reach = int(sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)))
    return start, start + (reach + 1) * itemsize


def _refuse_extra_state(prefix: str, part: nn.Module) -> None:
    if type(part).get_extra_state is not nn.Module.get_extra_state:
        raise UnsupportedModel(
            f"submodule {prefix or '(top)'!r} keeps extra state outside its tensors "
            "(get_extra_state), which the ledger cannot record"
        )
