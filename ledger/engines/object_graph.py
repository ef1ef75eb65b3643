"""What a module can reach: every object its code may use, with the submodule it was found in.

`copy.deepcopy` copies data but not code, so a function that captured a module or a tensor goes on
using the old one. Walking what a copy reaches finds such links wherever they hide: closures,
defaults, hooks, decorators, methods of the class, attributes of parameters.
"""

import gc
import logging
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dis import get_instructions
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

# Doors out of the model into the interpreter as a whole, where everything reaches everything.
_DOORS = (type, ModuleType, FrameType, CodeType, logging.Logger, threading.Thread, weakref.ref)
_ATOMS = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)
PASSED_BY = _DOORS + _ATOMS


@dataclass(frozen=True, slots=True)
class Found:
    """An object, the submodule it was met in ("" for the module itself) and the attribute."""

    value: Any
    submodule: str
    attribute: str


def walk(module: nn.Module, landmarks: Mapping[int, Any]) -> Iterator[Found]:
    """Every object that `module` reaches, each once.

    Globals of its functions are followed only to objects whose id is in `landmarks`.
    """
    names = {id(part): name for name, part in module.named_modules()}
    globals_seen: dict[int, set[str]] = {}
    classes: set[type] = set()
    seen: set[int] = set()
    # Objects made on the way (bound methods, lists of referents) must outlive the ids in `seen`.
    kept: list[Any] = []
    todo = [Found(module, "", "")]
    while todo:
        found = todo.pop()
        value = found.value
        if id(value) in seen or isinstance(value, PASSED_BY):
            continue
        seen.add(id(value))
        kept.append(value)
        yield found
        if isinstance(value, nn.Module):
            at = names.get(id(value), found.submodule)
            todo += [Found(held, at, key) for key, held in value.__dict__.items()]
            if type(value) not in classes:  # their methods are met once, as everything is
                classes.add(type(value))
                todo += [Found(code, at, key) for key, code in _methods(type(value))]
            continue
        if isinstance(value, FunctionType):
            held = _held_by(value) + _named_globals(value, landmarks, globals_seen)
        elif isinstance(value, torch.Tensor):
            held = list(value.__dict__.values())
        else:
            held = gc.get_referents(value)
        todo += [Found(one, found.submodule, found.attribute) for one in held]


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    for base in cls.__mro__:
        for key, value in vars(base).items():
            for code in (value, getattr(value, "__func__", None), getattr(value, "fget", None)):
                # torch's own methods close over nothing that is a model's.
                if isinstance(code, FunctionType) and not _is_torch(code):
                    yield key, code


def _is_torch(function: FunctionType) -> bool:
    return (function.__module__ or "").partition(".")[0] == "torch"


def _held_by(function: FunctionType) -> list[Any]:
    # A parametrised class closes over the first module it was made for, only to name a cache entry.
    if _is_torch(function) and function.__module__ == "torch.nn.utils.parametrize":
        return []
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    return [*cells, function.__defaults__, function.__kwdefaults__, function.__dict__]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (reading an unset cell raises)
    except ValueError:
        return False
    return True


def _named_globals(
    function: FunctionType, landmarks: Mapping[int, Any], known: dict[int, set[str]]
) -> list[Any]:
    space = function.__globals__
    if id(space) not in known:
        known[id(space)] = {key for key, held in space.items() if id(held) in landmarks}
    if not known[id(space)]:
        return []
    return [space[key] for key in known[id(space)].intersection(_loads(function.__code__))]


def _loads(code: CodeType) -> Iterator[str]:
    """Names of the globals that a function reads, its inner functions included."""
    for step in get_instructions(code):
        if step.opname == "LOAD_GLOBAL":
            yield step.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _loads(inner)
