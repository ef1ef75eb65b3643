"""One event in a few words, on one line, and what it changed below: how `log` shows it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from weightledger.api.plain_text import plain
from weightledger.ledger.debug.names import bare
from weightledger.ledger.events import ROLLED_BACK, ROLLOUT_CHANGED, UPDATE_REJECTED

Item = Mapping[str, Any]

STYLES = {UPDATE_REJECTED: "red", ROLLED_BACK: "yellow"}
MARKS_STYLE = "bold cyan"

_TIMED = re.compile(r"((?:v|update_)[0-9]+)_[0-9]+")
# Positions that name the same state for ever; `head~1` and times of day do not.
_LASTING = re.compile(r"v[0-9]|update_[0-9]|seq:")
_MOST_TENSORS = 20
_BAR = 30


def summary(event: Item) -> str:
    """What an event did, in a few words."""
    facts, kind = event["facts"], event["kind"]
    if "operation" in facts:
        parts = [facts["operation"], facts.get("parameter", facts.get("adapter", ""))]
        if "learning_rate" in facts:
            parts.append(f"lr {facts['learning_rate']:g}")
        if kind == UPDATE_REJECTED:
            return "refused: " + " ".join(part for part in parts if part)
        parts.append(f"{sum(one['changed'] for one in facts.get('tensors', ()))} changed")
        return " ".join(part for part in parts if part)
    if kind == ROLLOUT_CHANGED:
        to, base = (_state(facts[name]) for name in ("to", "base"))
        return f"rollout {facts['action']}: {facts['percent']} % {to}, the others {base}"
    if kind == ROLLED_BACK:
        cause = "" if facts["cause"] == "manual" else f" ({facts['cause']})"
        return f"rolled back to {_target(facts)}{cause}"
    named = facts.get("description") or short(str(facts.get("version_id", "")))
    words = str(kind).replace("_", " ")
    return f"{words}: {named}" if named else words


def _target(facts: Item) -> str:
    """Where a rollback led: by a name that means the same tomorrow, and as it was asked for."""
    asked = short(facts["to"])
    return asked if _LASTING.match(asked) else f"seq:{facts['to_seq']} ({asked})"


def _state(node: int | None) -> str:
    return "head" if node is None else f"seq:{node}"


def short(name: str) -> str:
    """A name without its time: `v1`, `update_3`."""
    return _TIMED.sub(r"\1", name)


def when(iso: str) -> str:
    """A time as people read it, in UTC: what it shares with now is left out."""
    at, now = datetime.fromisoformat(iso), datetime.now(UTC)
    if at.date() == now.date():
        return at.strftime("%H:%M:%S")
    return at.strftime("%m-%d %H:%M" if at.year == now.year else "%Y-%m-%d")


def one_line(event: Item, names: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Pieces of text, each with its style; `names` are those of the state it led to."""
    style = STYLES.get(event["kind"], "")
    yield f"{event['seq']} ", "yellow"
    if names:
        yield f"({', '.join(map(plain, names))}) ", MARKS_STYLE
    name = "" if event["id"] == f"event_{event['seq']}" else f"{short(event['id'])} "
    yield plain(name + summary(event)), style
    if event["reason"]:
        yield f" — {plain(event['reason'])}", ""
    if event["actor"]:
        yield f" [{plain(event['actor'])}]", "dim"


def stat(event: Item) -> Iterator[str]:
    """What an event changed, a line for each tensor, and all of it together."""
    tensors = sorted(event["facts"].get("tensors", ()), key=lambda one: -one["changed"])
    if not tensors:
        return
    shown = tensors[:_MOST_TENSORS]
    width = max(len(plain(bare(one["name"]))) for one in shown)
    digits = max(len(f"{one['changed']:,}") for one in shown)
    most = max(one["changed"] for one in shown) or 1
    for one in shown:
        mark = "+" if "before" not in one else "-" if "after" not in one else "~"
        length = -(-_BAR * one["changed"] // most)
        yield f" {plain(bare(one['name'])):<{width}} | {one['changed']:>{digits},} {mark * length}"
    if len(tensors) > len(shown):
        yield f" … and {len(tensors) - len(shown)} more"
    elements = sum(one["changed"] for one in tensors)
    noun = "tensor" if len(tensors) == 1 else "tensors"
    yield (
        f" {len(tensors)} {noun} changed, {elements:,} elements, "
        f"{event['payload_bytes']:,} bytes stored"
    )
