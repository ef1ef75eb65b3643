"""What the forwards of a module write into the modules themselves, read off their code.

Some models keep things on themselves while they run: frequencies for the length at hand, masks, the
last hidden state, counters of steps. Two requests at once then disturb each other. Running a model
once does not show it (many write only for long inputs), and needs an input; its code does. What is
followed: `forward`, hooks, methods of the module and functions that get the module or what it
holds. What code does that cannot be read, or through other names, is not found here.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

Path = tuple[str, ...]
"""How the code gets to an object from the module: attribute by attribute; () is the module."""

ANY = "*"
"""Some attribute, which one is known when it is written."""

_SETTERS = {"register_buffer", "register_parameter", "register_module", "add_module"}
_SETTERS |= {"__setattr__", "__delattr__"}
_CHANGES = {"append", "appendleft", "extend", "insert", "remove", "pop", "popitem", "popleft"}
_CHANGES |= {"clear", "update", "setdefault", "add", "discard", "sort", "reverse", "__setitem__"}

# Puts hooks in place once, which `hooks` notices, and passes `is_causal` on through the config.
_QUIET = "transformers.utils."
_ROPE = "transformers.modeling_rope_utils"
_DEPTH = 12


def scratches(module: nn.Module) -> Mapping[str, frozenset[str]]:
    """The attributes that forwards write, by the name of the submodule that holds them.

    Names of buffers are among them; ANY stands for one that is not known. Parameters are not: but
    for embeddings with `max_norm`, whose rows are scaled down in place as they are looked up.
    """
    names = {id(part): name for name, part in module.named_modules()}
    written: dict[str, set[str]] = {}
    for part in module.modules():
        for start, path in _Reading(part).paths():
            holder, attribute = _holder(start, path)
            name = names.get(id(holder))
            # Who writes to parameters changes the model behind the ledger, which notices it.
            changes_model = holder._parameters.get(attribute) is not None
            if name is not None and (_scales_down(holder) or not changes_model):
                written.setdefault(name, set()).add(attribute)
    return {name: frozenset(attributes) for name, attributes in written.items()}


def _scales_down(part: nn.Module) -> bool:
    return isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.max_norm is not None


def _holder(part: nn.Module, path: Path) -> tuple[nn.Module, str]:
    """The innermost module on a path, and the attribute of it that the path goes through."""
    holder = part
    for depth, attribute in enumerate(path[:-1]):
        value = _peek(holder, attribute)
        if not isinstance(value, nn.Module):
            return holder, path[depth]
        holder = value
    return holder, path[-1]


@dataclass(slots=True)
class _Reading:
    """Reads the code that one module runs."""

    part: nn.Module
    found: set[Path] = field(default_factory=set)
    others: "list[_Reading]" = field(default_factory=list)
    seen: set[tuple[Any, tuple[tuple[str, Path], ...]]] = field(default_factory=set)

    def paths(self) -> set[tuple[nn.Module, Path]]:
        """What is written, each as a path from a module."""
        part = self.part
        if _scales_down(part):
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
            if not _is_torch(cls) and name in vars(cls):
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
                other = _Reading(owner)
                other.call(called, [None for _ in arguments], depth + 1)
                self.others += [other, *other.others]
            self.call(called.__func__, [self._path_of(called.__self__), *arguments], depth)
        elif isinstance(called, FunctionType):
            wrapped = getattr(called, "__wrapped__", None)
            if wrapped is not None:
                self.call(wrapped, arguments, depth + 1)
            if not _is_torch(called) and not self._is_quiet(_where(called)):
                self._function(called, arguments, depth)

    def _is_quiet(self, where: str) -> bool:
        """Whether code of transformers writes nothing into this module that matters."""
        if where == _ROPE:
            kinds = vars(self.part).get("rope_type", "dynamic")
            kinds = kinds.values() if isinstance(kinds, Mapping) else [kinds]
            return not any("dynamic" in str(kind) or kind == "longrope" for kind in kinds)
        return where.startswith(_QUIET)

    def _hook(self, hook: Any) -> None:
        if _is_torch(type(hook)):
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
        return next(((key,) for key, held in _held(self.part) if held is value), None)

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
        tree = _tree(function)
        if tree is None:
            self.found.add((ANY,))  # unknown is not good
            return
        scope = _Scope(self, function, known, starred, depth)
        for statement in tree.body:
            scope.visit(statement)


class _Scope(ast.NodeVisitor):
    """Reads one function, with the names that stand for parts of the module."""

    def __init__(
        self,
        reading: _Reading,
        function: FunctionType,
        known: dict[str, Path],
        starred: list[Path | None],
        depth: int,
    ) -> None:
        self._reading = reading
        self._function = function
        self._known = known
        self._starred = starred
        self._depth = depth

    # What is written

    def visit_Assign(self, node: ast.Assign) -> None:
        """`a = b = value`."""
        self.visit(node.value)
        for target in node.targets:
            self._assign(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """`a: int = value`."""
        if node.value is not None:
            self.visit(node.value)
            self._assign(node.target, node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        """`(a := value)`."""
        self.visit(node.value)
        self._assign(node.target, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """`a += value`, which works in place on tensors and lists."""
        self.visit(node.value)
        path = self._path(node.target)
        if path:
            self._reading.found.add(path)

    def visit_Delete(self, node: ast.Delete) -> None:
        """`del a.b`."""
        for target in node.targets:
            if not isinstance(target, ast.Name):
                self._assign(target, None)

    def visit_For(self, node: ast.For) -> None:
        """A loop over what the module holds looks at parts of it."""
        self.visit(node.iter)
        self._assign(node.target, node.iter)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def _assign(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            values = value.elts if isinstance(value, ast.Tuple | ast.List) else []
            same = len(values) == len(target.elts)
            for number, one in enumerate(target.elts):
                self._assign(one, values[number] if same else value)
        elif isinstance(target, ast.Name):
            path = self._path(value) if value is not None else None
            if path is not None:
                self._known[target.id] = path
            else:
                self._known.pop(target.id, None)
        elif isinstance(target, ast.Starred):
            self._assign(target.value, value)
        else:
            path = self._path(target)
            if path:
                self._reading.found.add(path)

    # What is called

    def visit_Call(self, node: ast.Call) -> None:
        """A call may write to what it is called on, and to what it is given."""
        self.generic_visit(node)
        for keyword in node.keywords:
            path = self._path(keyword.value)
            if keyword.arg == "out" and path:
                self._reading.found.add(path)
        arguments = self._arguments(node)
        if isinstance(node.func, ast.Attribute):
            self._method(node, node.func, arguments)
        elif isinstance(node.func, ast.Name):
            if node.func.id in ("setattr", "delattr"):
                self._set(node, arguments, 1)
            elif any(path is not None for path in arguments):
                self._reading.call(self._named(node.func.id), arguments, self._depth + 1)

    def _method(self, node: ast.Call, func: ast.Attribute, arguments: list[Path | None]) -> None:
        name, reading = func.attr, self._reading
        base = self._path(func.value)
        if base is None:
            if _is_super(func.value):
                base = ()
            elif any(path is not None for path in arguments):
                if name in _SETTERS:
                    self._set(node, arguments, 1)
                else:
                    reading.call(self._dotted(func), arguments, self._depth + 1)
                return
            else:
                return
        if base == ():
            if name in _SETTERS:
                self._set(node, [(), *arguments], 0)
            else:
                reading.method(name, [(), *arguments], self._depth + 1)
            return
        holder, _ = _holder(reading.part, (*base, name))
        value = _follow(reading.part, base)
        if isinstance(value, nn.Module) and value is holder:
            if name in _SETTERS:
                reading.found.add((*base, _text(node.args[:1]) or ANY))
        elif (name.endswith("_") and not name.endswith("__")) or name in _CHANGES:
            reading.found.add(base)
        elif value is not None and not isinstance(value, torch.Tensor):
            method = getattr(type(value), name, None)
            reading.call(method, [base, *arguments], self._depth + 1)

    def _set(self, node: ast.Call, arguments: list[Path | None], at: int) -> None:
        """`setattr(module, name, …)` and its like; `at` is where the name stands."""
        path = arguments[0] if arguments else None
        if path is not None:
            self._reading.found.add((*path, _text(node.args[at : at + 1]) or ANY))

    def _arguments(self, node: ast.Call) -> list[Path | None]:
        arguments: list[Path | None] = []
        for one in node.args:
            if isinstance(one, ast.Starred):
                return [*arguments, *self._starred]
            arguments.append(self._path(one))
        return arguments

    # What names stand for

    def _path(self, node: ast.expr) -> Path | None:
        """The part of the module that an expression is, if it is one."""
        if isinstance(node, ast.Name):
            return self._known.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self._path(node.value)
            if base is None:
                return None
            value = _follow(self._reading.part, base)
            # What a tensor's attributes are is no part of the module, but `.data` is its memory.
            if isinstance(value, torch.Tensor):
                return base if node.attr == "data" else None
            return (*base, node.attr)
        if isinstance(node, ast.Subscript):
            return self._path(node.value) or None
        if isinstance(node, ast.IfExp):
            return self._path(node.body) or self._path(node.orelse)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "getattr" and node.args:
                base = self._path(node.args[0])
                return None if base is None else (*base, _text(node.args[1:2]) or ANY)
            if node.func.id == "vars" and node.args:
                base = self._path(node.args[0])
                return None if base is None else (*base, ANY)
        return None

    def _named(self, name: str) -> Any:
        function = self._function
        for free, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=False
        ):
            if free == name:
                return _cell(cell)
        return function.__globals__.get(name)

    def _dotted(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, ast.Attribute):
            value = self._dotted(node.value)
            return None if value is None else inspect.getattr_static(value, node.attr, None)
        return None


def _held(part: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from part.__dict__.items()
    for table in (part._parameters, part._buffers, part._modules):
        yield from table.items()


def _peek(value: Any, attribute: str) -> Any:
    """An attribute as it lies there, without running a property."""
    if isinstance(value, nn.Module):
        return next((held for key, held in _held(value) if key == attribute), None)
    return getattr(value, "__dict__", {}).get(attribute)


def _follow(part: nn.Module, path: Path) -> Any:
    value: Any = part
    for attribute in path:
        value = _peek(value, attribute)
    return value


def _text(nodes: list[ast.expr]) -> str | None:
    if nodes and isinstance(nodes[0], ast.Constant) and isinstance(nodes[0].value, str):
        return nodes[0].value
    return None


def _is_super(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    )


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _is_torch(code: FunctionType | type) -> bool:
    return _where(code).partition(".")[0] == "torch"


def _where(code: FunctionType | type) -> str:
    """The module that code was written in; a decorated function says that of what it decorates."""
    where = code.__globals__.get("__name__") if isinstance(code, FunctionType) else code.__module__
    return where or ""


def _tree(function: FunctionType) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """A function's own code, not what it wraps; None where it cannot be read."""
    return _trees(function.__code__)


@functools.lru_cache(maxsize=4096)
def _trees(code: Any) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    try:
        lines, _ = inspect.getsourcelines(code)
        body = ast.parse(textwrap.dedent("".join(lines))).body
    except (OSError, TypeError, SyntaxError):
        return None
    first = body[0] if body else None
    if not isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    # The file may have changed since it was loaded.
    names = [argument.arg for argument in (*first.args.posonlyargs, *first.args.args)]
    same = (first.name, names) == (code.co_name, list(code.co_varnames[: code.co_argcount]))
    return first if same else None
