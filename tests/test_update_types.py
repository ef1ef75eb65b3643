"""An update passes six types: each says something that the others do not, in a file of its own."""

import ast
import dataclasses
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import msgspec
import pytest
import torch

from tests.test_architecture import PACKAGE, ROOT
from weightledger import IncrementalUpdateRequest, Ledger

SIX = ("ApplyUpdates", "Plan", "Change", "ProposedEvent", "Event", "Committed")

# Plain values that stand in one of them.
PARTS = {
    "Update": "ApplyUpdates",
    "Caller": "ApplyUpdates",
    "Write": "Plan",
    "Given": "Plan",
    "HashedTensor": "Change",
    "Draft": "ProposedEvent",
    "Attached": "ProposedEvent",
    "Updated": "ProposedEvent",
    "TensorChange": "ProposedEvent",
    "Operands": "ProposedEvent",
    "BlobRef": "Event",
    "Counts": "Event",
    "Annotation": "Committed",
}

# What it does not become, but meets: its place in the queue, the writer's turn and what is asked
# with it, what is live, the tree of states, and what the engine asks of a new tensor.
BESIDE = {
    *("Job", "Turn", "Question", "LiveState", "Candidate", "LiveVersion", "StateChange"),
    "TensorSpec",
}


def is_data(kind: Any) -> bool:
    """Whether it is a class of ours that holds data: a dataclass, a struct or a named tuple."""
    return (
        isinstance(kind, type)
        and kind.__module__.startswith(f"{PACKAGE}.")
        and (
            dataclasses.is_dataclass(kind)
            or issubclass(kind, msgspec.Struct)
            or hasattr(kind, "_fields")
        )
    )


def constructed(run: Callable[[], object]) -> set[type]:
    """The classes of ours, of those that hold data, that were made instances of on this thread.

    Those with an `__init__` in Python are seen in it, and the others by the lines that were run:
    structs and named tuples are made by C.
    """
    seen: set[type] = set()
    lines: dict[str, set[int]] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if event == "call" and code.co_name == "__init__":
            seen.add(type(frame.f_locals[code.co_varnames[0]]))
        if f"/{PACKAGE}/" not in code.co_filename:
            return None
        lines.setdefault(code.co_filename, set()).add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    for module in list(sys.modules.values()):
        run_lines = lines.get(getattr(module, "__file__", None) or "")
        if run_lines:
            seen.update(called(module, run_lines))
    return {kind for kind in seen if is_data(kind)}


def called(module: Any, lines: set[int]) -> Iterator[type]:
    """The classes that a module calls by their name on these lines."""
    with open(module.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.func.lineno in lines:
            told = ast.unparse(node.func).split(".")
            what: Any = vars(module).get(told[0])
            for name in told[1:]:
                what = getattr(what, name, None)
            if isinstance(what, type):
                yield what


# What a small update is spared, whose values need not be planned before they are recorded.
SPARED = {"Plan", "Write", "Given"}


@pytest.mark.parametrize(("kind", "spared"), [("replace", set()), ("additive", SPARED)])
def test_an_update_passes_six_types(database_url: str, kind: str, spared: set[str]) -> None:
    """On both databases, and with an actor, so that there are words beside the event."""
    value = iter(range(2, 9))

    def request() -> IncrementalUpdateRequest:
        data = torch.full((4, 4), float(next(value)))
        return IncrementalUpdateRequest("w", data, 0.001, kind, actor="ana")

    committed: list[object] = []
    with Ledger.open(database_url) as ledger:
        log = ledger.model("small", base={"w": torch.zeros(4, 4)})
        log.subscribe(committed.append)
        for _ in range(3):  # what is made once and kept is there afterwards
            log.apply(request())
        kinds = {kind.__name__ for kind in constructed(lambda: log.apply(request()))}
    kinds -= {"IncrementalUpdateRequest"}  # what came before the command
    assert len(committed) == 4
    assert not kinds & spared
    whole = kinds - PARTS.keys() - BESIDE
    expected = set(SIX) - spared
    assert whole == expected, "an update passes another type: give what it says to one of the six"
    assert PARTS.keys() - spared <= kinds, "a part that no update has any more"


def test_each_part_stands_in_one_of_the_six() -> None:
    assert set(PARTS.values()) <= set(SIX)


def test_the_page_lists_the_six_and_their_files() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| \d \w+ \| `(\w+)` \| `(ledger/[\w/]+\.py)` \|", page, re.MULTILINE)
    assert tuple(name for name, _ in rows) == SIX
    for name, path in rows:
        dotted = path.removesuffix(".py").replace("/", ".")
        kind = getattr(importlib.import_module(f"{PACKAGE}.{dotted}"), name)
        assert kind.__module__ == f"{PACKAGE}.{dotted}"
        assert len((ROOT / path).read_text().splitlines()) <= 300, f"{path} is more than one idea"
