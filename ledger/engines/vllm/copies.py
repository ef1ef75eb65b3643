"""A vLLM model that loads into copies for a while, and is then what it was.

What loading writes to are tensors, attributes of the modules (kernels that hold packed weights) and
their quantisation methods. So all of these are kept, and put back whatever happens. The model's own
loader then meets its own modules in the form in which they load: names, shapes, fused modules and
what becomes of them afterwards are tried, not compared with a list. A layer's copy is made when its
tensors come and goes with the next call. Importable where vLLM is installed, only there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.model_executor.model_loader.reload.layerwise import (
    get_layerwise_info,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.meta import SKIP_TENSORS, to_meta_tensor


@contextmanager
def set_aside(model: torch.nn.Module) -> Iterator[None]:
    """In its block `model.load_weights` changes nothing of what the model computes afterwards.

    Nobody may compute with it meanwhile: for a worker between two of its steps.
    """
    kept = [_Kept(module) for module in model.modules()]
    try:
        for module in model.modules():
            _copy_small(module)
        initialize_layerwise_reload(model)
        for module in model.modules():
            info = get_layerwise_info(module)
            # What a layer's new values are copied to once it is loaded: nowhere.
            if info.kernel_tensors is not None:
                parameters, buffers = info.kernel_tensors
                info.kernel_tensors = _nowhere(parameters), _nowhere(buffers)
        yield
    finally:
        for one in kept:
            one.put_back()


def partly_loaded(model: torch.nn.Module) -> dict[str, int]:
    """How many values came of each module that got some of them and not all, before the end of a
    load. Padding never comes, so the same ones always lack the same."""
    parts: dict[str, int] = {}
    for name, module in model.named_modules():
        info = get_layerwise_info(module)
        if info.load_numel_total is not None and 0 < info.load_numel < info.load_numel_total:
            parts[name] = info.load_numel
    return parts


class _Kept:
    """What a module and its quantisation method have, by reference."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._parameters = dict(module._parameters)
        self._buffers = dict(module._buffers)
        self._passing = set(module._non_persistent_buffers_set)
        self._vars = [(owner, dict(vars(owner))) for owner in _owners(module)]

    def put_back(self) -> None:
        """The same objects in the same places."""
        get_layerwise_info(self._module).reset()
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


def _owners(module: torch.nn.Module) -> list[Any]:
    """The module, its quantisation method, and what that holds of vLLM's layers (kernels)."""
    method = getattr(module, "quant_method", None)
    if method is None or not hasattr(method, "__dict__"):
        return [module]
    kernels = [
        value
        for value in vars(method).values()
        if type(value).__module__.startswith("vllm.model_executor") and hasattr(value, "__dict__")
    ]
    return [module, method, *(one for one in kernels if not isinstance(one, torch.nn.Module))]


def _copy_small(module: torch.nn.Module) -> None:
    """Copies in place of what vLLM loads into as it is (biases), which are small."""
    for tensors in (module._parameters, module._buffers):
        for name in SKIP_TENSORS & tensors.keys():
            tensor = tensors[name]
            if tensor is not None:
                copy = tensor.data.clone()
                copy.__class__ = tensor.__class__
                copy.__dict__ = tensor.__dict__.copy()
                tensors[name] = copy  # type: ignore[assignment]


def _nowhere(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: tensor if name in SKIP_TENSORS else to_meta_tensor(tensor)
        for name, tensor in tensors.items()
    }
