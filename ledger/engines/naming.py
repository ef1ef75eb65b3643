"""Which tensors of a module are its state, and under which names.

Names are those of `named_parameters` and `named_buffers`: parameters and persistent buffers, in the
order of the module tree. A tied tensor has one name, its first; the others are aliases.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from weightledger.ledger.errors import UnsupportedModel
from weightledger.ledger.tensors.lanes import spec_of
from weightledger.ledger.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Naming:
    """The tensors of a state by name, their specs, and the aliases of tied ones."""

    tensors: Mapping[str, torch.Tensor]
    specs: Mapping[str, TensorSpec]
    aliases: Mapping[str, str]


def of_module(module: nn.Module) -> Naming:
    """The state of a module: the same tensor object under two names is tied.

    Raises UnsupportedModel, naming the tensor or submodule, for what the ledger cannot record:
    extra state, packed or quantised weights, tensor subclasses, parameters that overlap in memory.
    """
    named: list[tuple[str, torch.Tensor]] = []
    for prefix, part in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        own = dict(_own_state(part))
        _refuse_other_state(prefix, part, own)
        named += [(dot + name, tensor) for name, tensor in own.items()]
    for name, tensor in named:
        _refuse_subclass(name, tensor)
    return _named((name, tensor, id(tensor)) for name, tensor in named)


def of_tensors(state: Mapping[str, torch.Tensor]) -> Naming:
    """The state made of these tensors; two names of the same memory, seen alike, are tied.

    Raises UnsupportedModel for a tensor that the ledger cannot hold and for partial overlaps.
    """
    return _named((name, tensor, _view(tensor)) for name, tensor in state.items())


def homes(module: nn.Module) -> Iterator[tuple[str, Mapping[str, torch.Tensor | None], str]]:
    """Where each name of a module's state lives: name, owning table of a submodule, key in it."""
    for prefix, part in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for key, _ in _own_state(part):
            yield dot + key, part._parameters if key in part._parameters else part._buffers, key


def span(tensor: torch.Tensor) -> tuple[str, int, int]:
    """The memory that a tensor may occupy: device, first byte, byte after the last."""
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    size = (int(reach) + 1) * tensor.element_size() if tensor.numel() else 0
    return str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + size


def _own_state(part: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((name, p) for name, p in part._parameters.items() if p is not None)
    # A scripted module has no such set: its own format keeps every buffer.
    transient = getattr(part, "_non_persistent_buffers_set", ())
    for name, buffer in part._buffers.items():
        if buffer is not None and name not in transient:
            yield name, buffer


def _named(named: Iterator[tuple[str, torch.Tensor, Any]]) -> Naming:
    tensors: dict[str, torch.Tensor] = {}
    specs: dict[str, TensorSpec] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor, identity in named:
        if identity in first:
            aliases[name] = first[identity]
            continue
        specs[name] = spec_of(name, tensor)
        tensors[name] = tensor
        first[identity] = name
    _refuse_overlap(tensors)
    return Naming(tensors, specs, aliases)


def _view(tensor: torch.Tensor) -> Any:
    if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return id(tensor)
    return span(tensor), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj()


def _refuse_overlap(tensors: Mapping[str, torch.Tensor]) -> None:
    """Tensors that share memory without being one would change together, unrecorded."""
    # One after another in the same buffer is fine: cuDNN lays out the weights of an LSTM so.
    spans = sorted((*span(tensor), name) for name, tensor in tensors.items() if tensor.numel())
    for one, other in pairwise(spans):
        if one[0] == other[0] and other[1] < one[2]:
            raise UnsupportedModel(
                f"tensors {one[3]!r} and {other[3]!r} share memory without being one parameter; "
                "tie them by assigning the same Parameter",
                param=other[3],
            )


def _refuse_subclass(name: str, tensor: torch.Tensor) -> None:
    spec_of(name, tensor)  # says better why a lazy or wrapping tensor cannot be held
    if type(tensor) not in (nn.Parameter, torch.Tensor):
        raise UnsupportedModel(
            f"tensor {name!r} is a {type(tensor).__name__}; the ledger holds plain tensors and "
            "Parameters, whose bits are all there is to them",
            param=name,
        )


def _refuse_other_state(prefix: str, part: nn.Module, own: Mapping[str, torch.Tensor]) -> None:
    """What a submodule would save beyond its own tensors is nothing the ledger can record."""
    cls = type(part)
    if isinstance(part, torch.jit.ScriptModule):
        return
    where = f"submodule {prefix!r}" if prefix else "the module"
    if cls.get_extra_state is not nn.Module.get_extra_state and part.get_extra_state() is not None:
        raise UnsupportedModel(
            f"{where} ({cls.__name__}) keeps extra state outside its tensors (get_extra_state), "
            "which the ledger cannot record"
        )
    if cls._save_to_state_dict is not nn.Module._save_to_state_dict:
        saved: OrderedDict[str, Any] = OrderedDict()
        part._save_to_state_dict(saved, "", keep_vars=True)
        extra = [key for key, value in saved.items() if key not in own and value is not None]
        if extra:
            raise UnsupportedModel(
                f"{where} ({cls.__name__}) keeps {', '.join(extra)} outside its parameters and "
                "buffers, as packed quantised modules do; the ledger cannot record that"
            )
