"""Copying the ways to what changes in a module.

Objects are made empty first and filled then, so that they may refer to one another in circles. A
content is what an object holds: a dict by attribute or key, or a list by position. It is kept
beside the object, so that what is copied is what the ledger put there, never what a reader made
of it.
"""

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import MethodType
from typing import Any, cast

import torch
from torch import nn

from weightledger.ledger.engines.graph import Graph, ObjectNode, Unpathed, parts
from weightledger.ledger.engines.hooks import TABLES, HookTable, Owner

Content = Any

_ABSENT = object()

_COMPARED = (bool, int, float, complex, str, bytes, set, frozenset)


def copied(
    graph: Graph,
    numbers: Sequence[int],
    contents: Mapping[int, Content],
    tensors: Mapping[str, torch.Tensor],
    owner: Owner,
) -> tuple[dict[int, Any], dict[int, Content]]:
    """New objects and contents with these numbers, with these tensors in the places of theirs.

    `numbers` hold with each object all that lead to it, as `Graph.above` gives them, and all that
    lead to one of `tensors`.
    """
    nodes = graph.nodes
    fresh: dict[int, Content] = {number: contents[number].copy() for number in numbers}
    for name, tensor in tensors.items():
        for number, key in graph.holders[name]:
            fresh[number][key] = tensor
    objects: dict[int, Any] = {}
    for number in numbers:
        node = nodes[number]
        made = _empty(node) if node.order == 0 else _made(node, fresh[number])
        objects[number] = made
        for parent, key in node.parents:
            fresh[parent][key] = made
    for number, made in objects.items():
        node = nodes[number]
        if node.kind == "object":
            held = vars(made)
            held.update(fresh[number])
            _add_own(held, node, owner, number)
        elif node.kind == "dict":
            made.update(fresh[number])
            if type(made) is HookTable:
                made.watched(owner, node.parents[0][0])
        elif node.kind == "list":
            made.extend(fresh[number])
    for made in objects.values():
        if isinstance(made, nn.RNNBase):
            _refer(made)
    return objects, fresh


def paired(
    graph: Graph,
    pairs: Mapping[int, Any],
    tensors: Mapping[str, torch.Tensor],
    owner: Owner,
) -> tuple[dict[int, Any], dict[int, Content]]:
    """The objects and contents of a copy that `deepcopy` made, where it paired each with the
    original by the original's id. Raises Unpathed where copy and original do not correspond."""
    objects: dict[int, Any] = {
        number: pairs.get(id(node.value)) for number, node in enumerate(graph.nodes)
    }
    for number, made in objects.items():
        node = graph.nodes[number]
        if type(made) is not type(node.value):
            raise Unpathed(f"a {type(node.value).__name__} copies itself in its own way")
        if is_hook_table(node):
            parent, key = node.parents[0]
            objects[number] = vars(objects[parent])[key] = HookTable(made).watched(owner, parent)
    contents: dict[int, Content] = {}
    for number, made in objects.items():
        node = graph.nodes[number]
        if node.kind == "object":
            held = vars(made)
            contents[number] = {key: v for key, v in held.items() if key not in node.own}
            _add_own(held, node, owner, number)
        elif node.kind == "dict":
            contents[number] = dict(made)
        else:
            contents[number] = parts(made, node.kind)
    for number, node in enumerate(graph.nodes):
        for parent, key in node.parents:
            _require_pair(contents[parent], key, objects[number])
    for name, holders in graph.holders.items():
        for number, key in holders:
            _require_pair(contents[number], key, tensors[name])
    return objects, contents


def is_hook_table(node: ObjectNode) -> bool:
    """Whether an object that leads to tensors is a module's table of hooks."""
    return type(node.value) is OrderedDict and all(key in TABLES for _, key in node.parents)


def differing(node: ObjectNode, value: Any, content: Content) -> list[Any]:
    """The attributes or keys at which an object holds something else than was put there."""
    if node.kind == "object":
        held = vars(value)
        odd = [key for key, one in content.items() if held.get(key, _ABSENT) is not one]
        if len(held) != len(content) + len(node.own):
            odd += [key for key in held if key not in content and key not in node.own]
        original = vars(node.value)
        odd += [
            key
            for key in node.own
            if type(held.get(key)) is not HookTable
            and not _alike(held.get(key), original[key], set())
        ]
        return odd
    if node.kind == "dict" and type(value) is not HookTable:
        odd = [key for key, one in content.items() if value.get(key, _ABSENT) is not one]
        return odd + [key for key in value if key not in content]
    return []


def _require_pair(content: Content, key: Any, value: Any) -> None:
    held = content[key] if not isinstance(content, dict) else content.get(key, _ABSENT)
    if held is not value:
        raise Unpathed(f"{key!r} is not what the original has there")


def _empty(node: ObjectNode) -> Any:
    if is_hook_table(node):
        return HookTable()
    cls: Any = type(node.value)
    return cls.__new__(cls) if node.kind == "object" else cls()


def _made(node: ObjectNode, content: Sequence[Any]) -> Any:
    if node.kind == "tuple":
        return tuple(content)
    if node.kind == "method":
        return MethodType(node.value.__func__, content[0])
    positional = 1 + len(node.value.args)
    keywords = dict(zip(node.value.keywords, content[positional:], strict=True))
    return type(node.value)(*content[:positional], **keywords)


def _add_own(held: dict[str, Any], node: ObjectNode, owner: Owner, number: int) -> None:
    """Give an object its own containers, as the original's are."""
    original = vars(node.value)
    for key in node.own:
        value = original[key]
        if key in TABLES:
            table = HookTable(value) if value else HookTable()
            held[key] = table.watched(owner, number)
        else:
            held[key] = _own(value, {}) if value else type(value)()


def _own(value: Any, made: dict[int, Any]) -> Any:
    """A plain container with the same in it; the containers within are copied too.

    `made` are the copies by the id of what was copied: containers may hold one another in circles.
    """
    cls: Any = type(value)
    if id(value) in made:
        return made[id(value)]
    if cls in (dict, OrderedDict):
        table = made[id(value)] = cls()
        table.update((key, _own(one, made)) for key, one in value.items())
        return table
    if cls is list:
        row = made[id(value)] = []
        row += [_own(one, made) for one in value]
        return row
    if cls is tuple:
        return tuple(_own(one, made) for one in value)
    return set(value) if cls is set else value


def _alike(value: Any, original: Any, seen: set[int]) -> bool:
    """Whether a plain container, or what is in one, still has what the original has in it.

    What else is in there is not looked into, beyond its type. `seen` are the ids of the originals
    that were compared already.
    """
    cls: Any = type(original)
    if type(value) is not cls:
        return False
    if id(original) in seen:
        return True
    if cls in (dict, OrderedDict, list, tuple):
        seen.add(id(original))
        if cls in (dict, OrderedDict):
            if value.keys() != original.keys():
                return False
            value, original = value.values(), original.values()
        return len(value) == len(original) and all(
            _alike(one, other, seen) for one, other in zip(value, original, strict=True)
        )
    if isinstance(original, torch.Tensor):
        return value is original
    return cls not in _COMPARED or value is original or bool(value == original)


def _refer(module: nn.RNNBase) -> None:
    """Let an RNN's weak references point to its own weights."""
    weights = cast(Iterable[Any], module._flat_weights)
    refs = [weakref.ref(w) if w is not None else None for w in weights]
    vars(module)["_flat_weight_refs"] = refs
