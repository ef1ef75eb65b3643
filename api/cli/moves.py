"""What lies between two states: the events that going from one to the other undoes and redoes."""

from collections.abc import Mapping
from typing import Any, Protocol

from weightledger.ledger.events import STATE_CHANGING

_PAGE = 100


class Events(Protocol):
    """Where events are read from."""

    def events(self, query: Mapping[str, Any], number: int) -> list[dict[str, Any]]: ...

    def event(self, name: str) -> dict[str, Any]: ...


def move(source: Events, start: str, to: str) -> dict[str, Any]:
    """From the state that `start` names to the one that `to` names: both, and what is undone and
    redone on the way, in that order."""
    first, last = source.event(start), source.event(to)
    here, there = node_of(first), node_of(last)
    parents = _Parents(source)
    undone: list[int] = []
    redone: list[int] = []
    while here != there:
        if here > there:
            undone.append(here)
            here = parents(here)
        else:
            redone.append(there)
            there = parents(there)
    return {
        "from": _named(first),
        "to": _named(last),
        "undone": [parents.name(node) for node in undone],
        "redone": [parents.name(node) for node in reversed(redone)],
    }


def node_of(event: Mapping[str, Any]) -> int:
    """The node of the state that an event stands for: a version names an earlier one."""
    names = event["facts"].get("names")
    return int(names["node"] if names else event["node"])


def _named(event: Mapping[str, Any]) -> dict[str, Any]:
    names = event["facts"].get("names")
    digest = names["state"] if names else event["state_after"]
    return {"id": event["id"], "seq": node_of(event), "digest": digest}


class _Parents:
    """The state before each state change, read page by page, newest first."""

    def __init__(self, source: Events) -> None:
        self._source = source
        self._names: dict[int, str] = {}
        self._changes: list[tuple[int, int]] = []  # seq and node, newest first, without gaps

    def __call__(self, node: int) -> int:
        if not self._changes or self._changes[0][0] < node:
            self._changes.clear()
            self._load(node)
        while True:
            for seq, at in self._changes:
                if seq < node:
                    return at
            self._load(self._changes[-1][0] - 1)

    def name(self, node: int) -> str:
        """The public name of a node's event."""
        if node not in self._names:
            self._names[node] = self._source.event(f"seq:{node}")["id"]
        return self._names[node]

    def _load(self, most: int) -> None:
        query = {"kind": sorted(STATE_CHANGING), "max_seq": str(most)}
        for event in self._source.events(query, _PAGE):
            self._names[event["seq"]] = event["id"]
            self._changes.append((event["seq"], event["node"]))
