"""Ways from a module to what it holds, attribute by attribute, without running a property."""

from collections.abc import Iterator
from typing import Any

from torch import nn

Path = tuple[str, ...]
"""How the code gets to an object from the module: attribute by attribute; () is the module."""

ANY = "*"
"""Some attribute, which one is known when it is written."""


def holder_of(part: nn.Module, path: Path) -> tuple[nn.Module, str]:
    """The innermost module on a path, and the attribute of it that the path goes through."""
    holder = part
    for depth, attribute in enumerate(path[:-1]):
        value = peek(holder, attribute)
        if not isinstance(value, nn.Module):
            return holder, path[depth]
        holder = value
    return holder, path[-1]


def members(part: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from part.__dict__.items()
    for table in (part._parameters, part._buffers, part._modules):
        yield from table.items()


def peek(value: Any, attribute: str) -> Any:
    """An attribute as it lies there, without running a property."""
    if isinstance(value, nn.Module):
        return next((held for key, held in members(value) if key == attribute), None)
    return getattr(value, "__dict__", {}).get(attribute)


def follow(part: nn.Module, path: Path) -> Any:
    value: Any = part
    for attribute in path:
        value = peek(value, attribute)
    return value
