"""Helm's templates rendered, as far as our chart uses them: there is no Helm where tests run.

Go's text/template with `if`, `else`, `range`, `define` and `end`, trimmed by `{{-` and `-}}`;
pipelines of fields, strings and the functions in `_FUNCTIONS`. Anything else is an error.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

_ACTION = re.compile(r"\{\{(-)?\s*(.*?)\s*(-)?\}\}", re.S)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s|]+|\|')


class Unknown(ValueError):
    """The template uses what this does not know."""


Node = tuple[str, str, list["Node"], list["Node"]]
"""text or action, its words, what is inside, and what is inside of its else."""


def render(chart: Path, values: Mapping[str, Any], release: str = "main") -> list[dict[str, Any]]:
    """The documents of a chart, with values over its own, which its schema has to take."""
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    merged = _merged(yaml.safe_load((chart / "values.yaml").read_text()), values)
    jsonschema.validate(merged, json.loads((chart / "values.schema.json").read_text()))
    data = {
        "Values": merged,
        "Release": {"Name": release, "Service": "Helm", "Namespace": "default"},
        "Chart": {"Name": about["name"], "AppVersion": about["appVersion"]},
    }
    named: dict[str, list[Node]] = {}
    parsed = {
        path.name: _parse(path.read_text()) for path in sorted((chart / "templates").iterdir())
    }
    for nodes in parsed.values():
        named |= {_string(node[1].split()[1]): node[2] for node in nodes if node[0] == "define"}
    documents: list[dict[str, Any]] = []
    for name, nodes in parsed.items():
        if not name.startswith("_"):
            text = "".join(_written(nodes, data, data, named))
            documents += [one for one in yaml.safe_load_all(text) if one]
    return documents


def _merged(own: Any, over: Any) -> Any:
    if isinstance(own, dict) and isinstance(over, Mapping):
        return {**own, **{key: _merged(own.get(key), one) for key, one in over.items()}}
    return over


def _parse(text: str) -> list[Node]:
    """The nodes of a template, nested."""
    root: list[Node] = []
    stack: list[tuple[list[Node], Node | None]] = [(root, None)]
    at, trim = 0, False
    for action in _ACTION.finditer(text):
        before = text[at : action.start()]
        before = before.lstrip() if trim else before
        stack[-1][0].append(("text", before.rstrip() if action[1] else before, [], []))
        at, trim = action.end(), bool(action[3])
        word = action[2].split()[0]
        if word in ("if", "range", "define"):
            node: Node = (word, action[2], [], [])
            stack[-1][0].append(node)
            stack.append((node[2], node))
        elif word == "else":
            _, node_ = stack.pop()
            assert node_ is not None
            stack.append((node_[3], node_))
        elif word == "end":
            stack.pop()
        else:
            stack[-1][0].append(("action", action[2], [], []))
    rest = text[at:]
    root.append(("text", rest.lstrip() if trim else rest, [], []))
    if len(stack) != 1:
        raise Unknown("an action is not ended")
    return root


def _written(
    nodes: list[Node], dot: Any, data: Any, named: Mapping[str, list[Node]]
) -> Iterator[str]:
    for kind, words, inside, otherwise in nodes:
        if kind == "text":
            yield words
        elif kind == "action":
            value = _value(words, dot, data, named)
            yield str(value).lower() if isinstance(value, bool) else str(value)
        elif kind == "if":
            chosen = inside if _value(words[2:], dot, data, named) else otherwise
            yield from _written(chosen, dot, data, named)
        elif kind == "range":
            for one in _value(words[5:], dot, data, named):
                yield from _written(inside, one, data, named)


def _value(text: str, dot: Any, data: Any, named: Mapping[str, list[Node]]) -> Any:
    """What a pipeline comes to."""
    stages: list[list[str]] = [[]]
    for word in _WORD.findall(text):
        if word == "|":
            stages.append([])
        else:
            stages[-1].append(word)
    value: Any = None
    for number, (first, *rest) in enumerate(stages):
        given = [_operand(word, dot, data) for word in rest] + ([value] if number else [])
        if first == "include":
            value = "".join(_written(named[given[0]], given[1], data, named))
        elif first in _FUNCTIONS:
            value = _FUNCTIONS[first](*given)
        elif not rest and not number:
            value = _operand(first, dot, data)
        else:
            raise Unknown(f"no function {first!r}")
    return value


def _operand(word: str, dot: Any, data: Any) -> Any:
    if word.startswith('"'):
        return _string(word)
    if word.isdecimal():
        return int(word)
    if not word.startswith("."):
        raise Unknown(f"no value {word!r}")
    value = dot
    for part in filter(None, word.split(".")):
        if part not in value:
            raise Unknown(f"{word}: there is no {part!r}")
        value = value[part]
    return value


def _string(word: str) -> str:
    text: str = json.loads(word)
    return text


def _to_yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False)
    return text.rstrip("\n")


def _nindent(size: int, text: str) -> str:
    return "".join(f"\n{' ' * size}{line}" if line else "\n" for line in text.split("\n"))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "quote": lambda value: json.dumps(str(value)),
    "toYaml": _to_yaml,
    "nindent": _nindent,
    "ne": lambda one, other: one != other,
    "printf": lambda form, *values: form % values,
}
