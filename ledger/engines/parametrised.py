"""Parametrised modules (`torch.nn.utils.parametrize`) between versions.

`parametrize.cached()` keeps computed tensors in one table for the whole process, by the identity of
the module that was parametrised first. Versions would all share that entry, and a written module
would go on using what was computed before.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


def uncached(module: nn.Module) -> None:
    """Let the parametrised parts of `module` and its copies compute, cached block or not."""
    for part in module.modules():
        if not parametrize.is_parametrized(part):
            continue
        cls = type(part)
        names = {name for name, held in vars(cls).items() if isinstance(held, property)}
        held = {key: v for key, v in vars(cls).items() if key not in ("__dict__", "__weakref__")}
        held |= {name: property(_computed(name), vars(cls)[name].fset) for name in names}
        part.__class__ = type(cls.__name__, cls.__bases__, held)


def forget() -> None:
    """Drop what cached blocks have computed, after weights were written in place."""
    parametrize._cache.clear()


def _computed(name: str) -> Any:
    def compute(part: Any) -> Tensor:
        tensor: Tensor = part.parametrizations[name]()
        return tensor

    return compute
