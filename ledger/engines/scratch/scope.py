"""What one function writes into a module, and what it calls with parts of it."""

import ast
import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from weightledger.ledger.engines.scratch.paths import ANY, Path, follow, holder_of
from weightledger.ledger.engines.scratch.source import cell_value

if TYPE_CHECKING:
    from weightledger.ledger.engines.scratch.reading import Reading

_SETTERS = {"register_buffer", "register_parameter", "register_module", "add_module"}
_SETTERS |= {"__setattr__", "__delattr__"}
_CHANGES = {"append", "appendleft", "extend", "insert", "remove", "pop", "popitem", "popleft"}
_CHANGES |= {"clear", "update", "setdefault", "add", "discard", "sort", "reverse", "__setitem__"}


class Scope(ast.NodeVisitor):
    """Reads one function, with the names that stand for parts of the module."""

    def __init__(
        self,
        reading: "Reading",
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
        holder, _ = holder_of(reading.part, (*base, name))
        value = follow(reading.part, base)
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
            value = follow(self._reading.part, base)
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
                return cell_value(cell)
        return function.__globals__.get(name)

    def _dotted(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, ast.Attribute):
            value = self._dotted(node.value)
            return None if value is None else inspect.getattr_static(value, node.attr, None)
        return None


def _text(nodes: list[ast.expr]) -> str | None:
    if nodes and isinstance(nodes[0], ast.Constant) and isinstance(nodes[0].value, str):
        return nodes[0].value
    return None


def _is_super(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    )
