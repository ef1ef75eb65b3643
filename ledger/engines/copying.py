"""Building the next version of a module: its structure copied, its untouched tensors shared.

`copy.deepcopy` with a memo that maps every untouched tensor to itself and every changed one to its
replacement keeps hooks, plain lists of submodules, ties and parametrisations right, because it
copies the object graph as it is. What it cannot see into is a closure: a function that captured the
module goes on using the old version. Such modules are refused.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn

from ledger.errors import UnsupportedModel

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def next_module(
    module: nn.Module, replacements: Mapping[int, torch.Tensor], shared: Mapping[int, torch.Tensor]
) -> nn.Module:
    """A copy of `module` in which tensors with these ids are replaced, and the others shared.

    Both mappings are by `id` of a tensor of `module`.
    """
    return copy.deepcopy(module, {**shared, **replacements})


def replacement(live: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` as what `live` is: a Parameter with the same requires_grad, or a plain tensor."""
    if isinstance(live, nn.Parameter):
        made = nn.Parameter(new, requires_grad=live.requires_grad)
        made.__dict__.update(live.__dict__)
        return made
    return new


def every_tensor(module: nn.Module) -> dict[int, torch.Tensor]:
    """Parameters and buffers of a module by id, non-persistent buffers included."""
    found: dict[int, torch.Tensor] = {id(p): p for p in module.parameters()}
    found.update({id(b): b for b in module.buffers()})
    return found


def require_copyable(module: nn.Module) -> None:
    """Raise UnsupportedModel, naming the submodule, unless copies of `module` stand alone."""
    for name, part in module.named_modules():
        where = f"submodule {name!r}" if name else "the module"
        if isinstance(part, torch.jit.ScriptModule):
            raise _refused(where, "is a ScriptModule")
        if isinstance(part, torch._dynamo.OptimizedModule):
            raise _refused(where, "is wrapped by torch.compile; hand over the module itself")
        for attribute, function in _functions(part):
            if _captures_model(function, set()):
                raise _refused(where, f"has a closure over the model in {attribute}")
    _try_copy(module)


def _try_copy(module: nn.Module) -> None:
    """Copy once with every tensor replaced: no tensor of the original may be left in the copy."""
    originals = every_tensor(module)
    stand_ins = {
        key: replacement(t, torch.empty_like(t, device="meta")) for key, t in originals.items()
    }
    try:
        made = next_module(module, stand_ins, {})
    except Exception as error:
        raise UnsupportedModel(
            f"the module cannot be copied ({error}); use InplaceEngine"
        ) from error
    wanted = {id(t) for t in stand_ins.values()}
    left = [name for name, t in made.named_parameters() if id(t) not in wanted]
    left += [name for name, t in made.named_buffers() if id(t) not in wanted]
    if left:
        raise UnsupportedModel(
            f"copies of the module keep their own {', '.join(left[:4])}; use InplaceEngine"
        )


def _functions(part: nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    for key, value in part.__dict__.items():
        if callable(value) and not isinstance(value, nn.Module | torch.Tensor | type):
            yield key, value
    for hooks in _HOOKS:
        for hook in getattr(part, hooks, {}).values():
            yield hooks.strip("_"), getattr(hook, "hook", hook)


def _captures_model(function: Any, seen: set[int]) -> bool:
    """Whether a function holds a module or a tensor that deepcopy will not look into."""
    if id(function) in seen:
        return False
    seen.add(id(function))
    if isinstance(function, functools.partial):
        # partial objects are copied, their arguments too; only the function inside can hide one.
        return _captures_model(function.func, seen)
    if not isinstance(function, FunctionType):
        return False
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    held = (
        cells + list(function.__defaults__ or ()) + list((function.__kwdefaults__ or {}).values())
    )
    return any(
        isinstance(value, nn.Module | torch.Tensor) or _captures_model(value, seen)
        for value in _flat(held)
    )


def _flat(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple | set):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()
        elif hasattr(value, "__self__"):
            yield value.__self__
        else:
            yield value


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _refused(where: str, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{where} {why}, so its versions cannot stand side by side; use InplaceEngine"
    )
