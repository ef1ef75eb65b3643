"""Which objects of a module lead to which tensors: what has to be copied when one is replaced.

`copy.deepcopy` copies every object that a module reaches. A version needs new objects only on the
ways from the module to the tensors that change: the submodule, its ancestors, and whatever else
refers to them, such as hooks, plain lists, bound methods and parametrisations. All others it can
share with the version before. Here the objects that lead to a tensor or to a submodule are numbered
and remember who refers to them; `paths` copies along these ways.
"""

import copyreg
import functools
import gc
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any, Literal

import torch
from torch import nn

from weightledger.ledger.engines import object_graph

Kind = Literal["object", "dict", "list", "tuple", "method", "partial"]

Key = Any
"""Where an object refers to another: an attribute, a key, a position."""

_EXACT: Mapping[type, Kind] = {
    dict: "dict",
    OrderedDict: "dict",
    list: "list",
    tuple: "tuple",
    MethodType: "method",
    functools.partial: "partial",
}
# What can only be made of its parts, not be made empty and filled.
_MADE: Collection[Kind] = ("tuple", "method", "partial")

_TABLES = ("_parameters", "_buffers", "_modules")
# Where torch copies modules in ways of its own that come to copying `__dict__`.
_PLAIN_IN_TORCH = ("torch.nn.modules.", "torch.nn.utils.parametrize", "torch._dynamo.")

_CONTAINERS = (dict, list, tuple, set, frozenset, str, bytes, bytearray)


class Unpathed(Exception):
    """Why a module's versions have to be copied whole."""


@dataclass(slots=True)
class ObjectNode:
    """One object: who refers to it, and what of it each copy has to itself.

    `parents` are (number, key) of those that refer to it. `order` is 0 for what can be made empty
    and filled later; others are made after those of a lower one, which they are made of. `own` are
    keys of containers that every copy gets anew, and which lead to no tensor.
    """

    value: Any
    kind: Kind
    parents: list[tuple[int, Key]] = field(default_factory=list)
    order: int = 0
    own: list[Key] = field(default_factory=list)


class Graph:
    """The objects of `module` that lead to `tensors` (id to name) or to a submodule.

    Raises Unpathed where a way leads through something that cannot be copied by hand.
    """

    def __init__(self, module: nn.Module, tensors: Mapping[int, str]) -> None:
        self.nodes: list[ObjectNode] = []
        self.holders: dict[str, list[tuple[int, Key]]] = {name: [] for name in tensors.values()}
        self.numbers: dict[int, int] = {}
        self._ways: dict[str, tuple[int, ...]] = {}
        self._discover(module, tensors)
        self._rank()

    def ways(self, name: str) -> tuple[int, ...]:
        """The numbers of all objects that lead to a tensor."""
        known = self._ways.get(name)
        if known is None:
            known = self._ways[name] = self.above(number for number, _ in self.holders[name])
        return known

    def above(self, numbers: Iterable[int]) -> tuple[int, ...]:
        """These objects and all that lead to them."""
        todo = list(numbers)
        seen = set(todo)
        while todo:
            for parent, _ in self.nodes[todo.pop()].parents:
                if parent not in seen:
                    seen.add(parent)
                    todo.append(parent)
        return tuple(sorted(seen, key=lambda number: self.nodes[number].order))

    def _discover(self, module: nn.Module, tensors: Mapping[int, str]) -> None:
        """Go through all there is, then keep what leads to a tensor or a submodule."""
        values: dict[int, Any] = {}
        kinds: dict[int, Kind] = {}
        referrers: dict[int, list[tuple[int, Key]]] = {}
        useful: list[int] = []
        todo: list[Any] = [module]
        while todo:
            value = todo.pop()
            if id(value) in values:
                continue
            values[id(value)] = value
            kind = kinds[id(value)] = _kind_of(value)
            if isinstance(value, nn.Module):
                useful.append(id(value))
            for key, child in _children(value, kind, tensors):
                if id(child) in tensors:
                    _is_plain(child, tensors)
                    self.holders[tensors[id(child)]].append((id(value), key))
                    useful.append(id(value))
                elif _is_plain(child, tensors):
                    continue
                elif _kind_or_none(child) is None:
                    _require_leads_nowhere(child, tensors)
                else:
                    referrers.setdefault(id(child), []).append((id(value), key))
                    todo.append(child)
                if key in _TABLES and isinstance(value, nn.Module) and child:
                    useful.append(id(child))
        kept: set[int] = set()
        while useful:
            one = useful.pop()
            if one not in kept:
                kept.add(one)
                useful += [parent for parent, _ in referrers.get(one, ())]
        for one, value in values.items():
            if one in kept:
                self.numbers[one] = len(self.nodes)
                self.nodes.append(ObjectNode(value, kinds[one]))
        for one, number in self.numbers.items():
            node = self.nodes[number]
            node.parents = [(self.numbers[p], key) for p, key in referrers.get(one, ())]
            if node.kind == "object":
                node.own = [
                    key
                    for key, child in vars(node.value).items()
                    if type(child) in (dict, OrderedDict, list, set) and id(child) not in kept
                ]
        self.holders = {
            name: [(self.numbers[one], key) for one, key in held]
            for name, held in self.holders.items()
        }

    def _rank(self) -> None:
        """Order what can only be made of what is there already. Unpathed where that is a circle."""
        made = [n for n, node in enumerate(self.nodes) if node.kind in _MADE]
        for _ in range(len(made) + 1):
            changed = False
            for number in made:
                node = self.nodes[number]
                node.order = max(node.order, 1)
                for parent, _ in node.parents:
                    above = self.nodes[parent]
                    if above.kind in _MADE and above.order <= node.order:
                        above.order, changed = node.order + 1, True
            if not changed:
                return
        raise Unpathed("tuples or bound methods refer to one another in a circle")


def _kind_or_none(value: Any) -> Kind | None:
    exact = _EXACT.get(type(value))
    if exact is not None:
        return exact
    return "object" if _is_rebuildable(value) else None


def _kind_of(value: Any) -> Kind:
    kind = _kind_or_none(value)
    if kind is None:
        raise Unpathed(f"a {type(value).__name__} cannot be copied by hand")
    return kind


def _is_rebuildable(value: Any) -> bool:
    """Whether an object is its class and its `__dict__`, so that `deepcopy` copies just these."""
    cls: Any = type(value)
    if not hasattr(value, "__dict__") or isinstance(value, _CONTAINERS):
        return False
    setting = getattr(cls, "__setstate__", None)
    return (
        cls.__reduce_ex__ is object.__reduce_ex__
        and cls.__reduce__ is object.__reduce__
        and _of_torch_or(getattr(cls, "__deepcopy__", None), None)
        and not hasattr(cls, "__getnewargs__")
        and not hasattr(cls, "__getnewargs_ex__")
        and cls not in copyreg.dispatch_table
        and not copyreg._slotnames(cls)  # type: ignore[attr-defined]
        and _of_torch_or(getattr(cls, "__getstate__", None), getattr(object, "__getstate__", None))
        and _of_torch_or(setting, None)
    )


def _of_torch_or(method: Any, usual: Any) -> bool:
    """Whether a method is the usual one, or one of torch's own modules, whose states are dicts."""
    return method is usual or getattr(method, "__module__", "").startswith(_PLAIN_IN_TORCH)


def _children(value: Any, kind: Kind, tensors: Mapping[int, str]) -> list[tuple[Key, Any]]:
    if kind == "object":
        return list(vars(value).items())
    if kind == "dict":
        for key in value:
            _require_leads_nowhere(key, tensors)
        return list(value.items())
    return list(enumerate(parts(value, kind)))


def parts(value: Any, kind: Kind) -> list[Any]:
    """What a list, tuple, bound method or partial is made of, in order."""
    if kind == "method":
        return [value.__self__]
    if kind == "partial":
        if value.__dict__:
            raise Unpathed("a partial has attributes")
        return [value.func, *value.args, *value.keywords.values()]
    return list(value)


def _is_plain(value: Any, tensors: Mapping[int, str]) -> bool:
    """Whether a value refers to nothing that is copied: numbers, texts, functions, classes."""
    if isinstance(value, torch.Tensor):
        for held in value.__dict__.values():
            _require_leads_nowhere(held, tensors)
        return True
    return isinstance(value, (*object_graph.PASSED_BY, FunctionType, torch.Generator))


def _require_leads_nowhere(value: Any, tensors: Mapping[int, str]) -> None:
    """Unpathed if an object that cannot be copied by hand leads to a submodule or a tensor."""
    seen: set[int] = set()
    kept: list[Any] = []
    todo = [value]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, (*object_graph.PASSED_BY, FunctionType)):
            continue
        if isinstance(one, nn.Module) or id(one) in tensors:
            raise Unpathed(f"a {type(value).__name__} leads to a {type(one).__name__}")
        seen.add(id(one))
        kept.append(one)
        if not isinstance(one, torch.Tensor):
            todo += gc.get_referents(one)
