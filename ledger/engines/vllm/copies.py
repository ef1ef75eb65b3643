"""A server's model that loads into copies for a while, and is then what it was.

What loading writes to are tensors, attributes of the modules (kernels that hold packed weights) and
their quantisation methods. So all of these are kept, and put back whatever happens. The model's own
loader then meets its own modules in the form in which they load: names, shapes, fused modules and
what becomes of them afterwards are tried, not compared with a list. A layer's copy is made when its
tensors come and goes with the next call.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Module = torch.nn.Module


@dataclass(frozen=True, slots=True)
class Reload:
    """How a server loads a model again, layer by layer: its own functions, and the tensors that it
    loads into `as_they_are`, by name."""

    package: str
    begin: Callable[[Module], None]
    finish: Callable[[Module, Any], None]
    info_of: Callable[[Module], Any]
    as_they_are: frozenset[str]
    to_meta: Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def set_aside(model: Module, reload: Reload) -> Iterator[None]:
    """In its block `model.load_weights` changes nothing of what the model computes afterwards.

    Nobody may compute with it meanwhile: for a worker between two of its steps.
    """
    kept = [_Kept(module, reload) for module in model.modules()]
    try:
        for module in model.modules():
            _copy_small(module, reload.as_they_are)
        reload.begin(model)
        for module in model.modules():
            info = reload.info_of(module)
            # What a layer's new values are copied to once it is loaded: nowhere.
            if info.kernel_tensors is not None:
                parameters, buffers = info.kernel_tensors
                info.kernel_tensors = (
                    _nowhere(parameters, reload),
                    _nowhere(buffers, reload),
                )
        yield
    finally:
        for one in kept:
            one.put_back()


def partly_loaded(model: Module, reload: Reload) -> dict[str, int]:
    """How many values came of each module that got some of them and not all, before the end of a
    load. Padding never comes, so the same ones always lack the same."""
    parts: dict[str, int] = {}
    for name, module in model.named_modules():
        info = reload.info_of(module)
        if info.load_numel_total is not None and 0 < info.load_numel < info.load_numel_total:
            parts[name] = info.load_numel
    return parts


class _Kept:
    """What a module and its quantisation method have, by reference."""

    def __init__(self, module: Module, reload: Reload) -> None:
        self._module = module
        self._reload = reload
        self._parameters = dict(module._parameters)
        self._buffers = dict(module._buffers)
        self._passing = set(module._non_persistent_buffers_set)
        self._vars = [(owner, dict(vars(owner))) for owner in _owners(module, reload)]

    def put_back(self) -> None:
        """The same objects in the same places."""
        self._reload.info_of(self._module).reset()
        for owner, before in self._vars:
            vars(owner).clear()
            vars(owner).update(before)
        module = self._module
        for now, before in (
            (module._parameters, self._parameters),
            (module._buffers, self._buffers),
        ):
            now.clear()
            now.update(before)  # type: ignore[arg-type]
        module._non_persistent_buffers_set.clear()
        module._non_persistent_buffers_set.update(self._passing)


def _owners(module: Module, reload: Reload) -> list[Any]:
    """The module, its quantisation method, and what that holds of the server's layers (kernels)."""
    method = getattr(module, "quant_method", None)
    if method is None or not hasattr(method, "__dict__"):
        return [module]
    theirs = f"{reload.package}.model_executor"
    kernels = [
        value
        for value in vars(method).values()
        if type(value).__module__.startswith(theirs) and hasattr(value, "__dict__")
    ]
    return [module, method, *(one for one in kernels if not isinstance(one, Module))]


def _copy_small(module: Module, names: frozenset[str]) -> None:
    """Copies in place of what the server loads into as it is (biases), which are small."""
    for tensors in (module._parameters, module._buffers):
        for name in names & tensors.keys():
            tensor = tensors[name]
            if tensor is not None:
                copy = tensor.data.clone()
                copy.__class__ = tensor.__class__
                copy.__dict__ = tensor.__dict__.copy()
                tensors[name] = copy  # type: ignore[assignment]


def _nowhere(tensors: dict[str, torch.Tensor], reload: Reload) -> dict[str, torch.Tensor]:
    return {
        name: tensor if name in reload.as_they_are else reload.to_meta(tensor)
        for name, tensor in tensors.items()
    }
