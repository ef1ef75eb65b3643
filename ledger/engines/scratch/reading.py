"""Which code a module runs when it is called: its forward, hooks, methods, and what gets it."""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from weightledger.ledger.engines.scratch.paths import ANY, Path, members
from weightledger.ledger.engines.scratch.scope import Scope
from weightledger.ledger.engines.scratch.source import is_torch, tree_of, written_in

# Puts hooks in place once, which `hooks` notices, and passes `is_causal` on through the config.
_QUIET = "transformers.utils."
_ROPE = "transformers.modeling_rope_utils"
_DEPTH = 12


@dataclass(slots=True)
class Reading:
    """Reads the code that one module runs."""

    part: nn.Module
    found: set[Path] = field(default_factory=set)
    others: "list[Reading]" = field(default_factory=list)
    seen: set[tuple[Any, tuple[tuple[str, Path], ...]]] = field(default_factory=set)

    def paths(self) -> set[tuple[nn.Module, Path]]:
        """What is written, each as a path from a module."""
        part = self.part
        if scales_down(part):
            self.found.add(("weight",))
        self.method("forward", [()], 0)
        for table in (part._forward_pre_hooks, part._forward_hooks):
            for hook in table.values():
                self._hook(hook)
        return {(one.part, path) for one in (self, *self.others) for path in one.found}

    def method(self, name: str, arguments: list[Path | None], depth: int) -> None:
        """Read a method of the module; `arguments` say which of them are parts of the module."""
        own = self.part.__dict__.get(name)
        if own is not None:
            self.call(own, arguments[1:], depth)
            return
        for cls in type(self.part).__mro__:
            if not is_torch(cls) and name in vars(cls):
                self.call(getattr(vars(cls)[name], "__func__", vars(cls)[name]), arguments, depth)

    def call(self, called: Any, arguments: list[Path | None], depth: int) -> None:
        """Read a function, bound method, partial or callable object."""
        if depth > _DEPTH:
            return
        if isinstance(called, functools.partial):
            free = [self._path_of(one) for one in called.args]
            self.call(called.func, [*free, *arguments], depth)
        elif isinstance(called, MethodType):
            owner = called.__self__
            if isinstance(owner, nn.Module) and owner is not self.part:
                other = Reading(owner)
                other.call(called, [None for _ in arguments], depth + 1)
                self.others += [other, *other.others]
            self.call(called.__func__, [self._path_of(called.__self__), *arguments], depth)
        elif isinstance(called, FunctionType):
            wrapped = getattr(called, "__wrapped__", None)
            if wrapped is not None:
                self.call(wrapped, arguments, depth + 1)
            if not is_torch(called) and not self._is_quiet(written_in(called)):
                self._function(called, arguments, depth)

    def _is_quiet(self, where: str) -> bool:
        """Whether code of transformers writes nothing into this module that matters."""
        if where == _ROPE:
            kinds = vars(self.part).get("rope_type", "dynamic")
            kinds = kinds.values() if isinstance(kinds, Mapping) else [kinds]
            return not any("dynamic" in str(kind) or kind == "longrope" for kind in kinds)
        return where.startswith(_QUIET)

    def _hook(self, hook: Any) -> None:
        if is_torch(type(hook)):
            # torch's own of this form (weight_norm, spectral_norm, pruning) set what they compute.
            name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
            self.found.add((str(name or ANY),))
            return
        arguments: list[Path | None] = [()]
        if not isinstance(hook, FunctionType | MethodType | functools.partial):
            hook = type(hook).__call__
            arguments = [None, ()]
        self.call(hook, arguments, 0)

    def _path_of(self, value: Any) -> Path | None:
        if value is self.part:
            return ()
        return next(((key,) for key, held in members(self.part) if held is value), None)

    def _function(self, function: FunctionType, arguments: list[Path | None], depth: int) -> None:
        code = function.__code__
        names = code.co_varnames[: code.co_argcount]
        known = {name: p for name, p in zip(names, arguments, strict=False) if p is not None}
        starred: list[Path | None] = []
        if code.co_flags & inspect.CO_VARARGS:
            starred = arguments[len(names) :]
        if not known and not any(path is not None for path in starred):
            return
        mark = (code, tuple(sorted(known.items())))
        if mark in self.seen:
            return
        self.seen.add(mark)
        tree = tree_of(function)
        if tree is None:
            self.found.add((ANY,))  # unknown is not good
            return
        scope = Scope(self, function, known, starred, depth)
        for statement in tree.body:
            scope.visit(statement)


def scales_down(part: nn.Module) -> bool:
    return isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.max_norm is not None
