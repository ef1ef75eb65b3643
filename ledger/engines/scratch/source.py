"""The code of functions: where it was written, and as a tree."""

import ast
import functools
import inspect
import textwrap
from types import FunctionType
from typing import Any


def is_torch(code: FunctionType | type) -> bool:
    return written_in(code).partition(".")[0] == "torch"


def written_in(code: FunctionType | type) -> str:
    """The module that code was written in; a decorated function says that of what it decorates."""
    name = code.__globals__.get("__name__") if isinstance(code, FunctionType) else code.__module__
    return name or ""


def tree_of(function: FunctionType) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
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


def cell_value(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
