"""Which pictures there are of what is asked: diffs as plain JSON in, SVG out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from weightledger.ledger.debug.pictures import (
    Bar,
    LinePoint,
    VerdictMark,
    bars,
    heat_map,
    line,
    search,
)
from weightledger.ledger.debug.spread import HistogramBin
from weightledger.ledger.debug.svg import GREY, RED

Item = Mapping[str, Any]

_MOST_BARS = 60
_MOST_ROWS = 120
_VERDICTS = {"good": "#2e7d32", "bad": RED, "skip": GREY}


def diff_picture(found: Item) -> str:
    """Of `StateDiff.to_json` bars, a layer each; of `Each.to_json` layers × updates."""
    return _each(found) if found["object"] == "diff.each" else _two(found)


def blame_picture(found: Item) -> str:
    """Of `Blame.to_json`: the parameter's norm, or the element's value, over time."""
    whole = found["index"] is None
    names = ("norm_before", "norm_after") if whole else ("before", "after")
    touches = list(reversed(found["touches"]))
    points = [LinePoint(f"before {one['id']}", _height(one[names[0]])) for one in touches[:1]]
    points += [
        LinePoint(
            one["id"] if one["live"] else f"{one['id']} (undone by {one['undone_by']})",
            _height(one[names[1]]),
            faded=not one["live"],
        )
        for one in touches
    ]
    what = found["parameter"] if whole else f"{found['parameter']}{found['index']}"
    measure = "The L2 norm" if whole else "The value"
    return line(
        f"{found['model']}: {what}",
        f"{measure} after each of {len(touches)} events that changed it, oldest first. Grey ones "
        "are not part of the live state.",
        points,
    )


def search_picture(found: Item) -> str:
    """Of `bisect.reporting.chances`: the probability of each stretch of the way, and verdicts."""
    columns = [
        Bar(
            f"seq {one['first_seq']}"
            + ("" if one["steps"] == 1 else f" to {one['last_seq']}, {one['steps']} steps"),
            one["probability"],
        )
        for one in found["columns"]
    ]
    marks = [
        VerdictMark(
            one["at"],
            f"seq:{one['seq']} is {one['verdict']}"
            + ("" if one["score"] is None else f", {one['score']:.6g}"),
            _VERDICTS[one["verdict"]],
        )
        for one in found["verdicts"]
    ]
    return search(
        f"{found['model']}: {found['good']} to {found['bad']}",
        f"How likely each of {found['steps']} steps made the model bad, from the good state to the "
        f"bad one; below it {len(marks)} verdicts: green is good, red is bad, grey could not be "
        "judged.",
        columns,
        marks,
        (found["good"], found["bad"]),
    )


def spread_picture(steps: Sequence[HistogramBin]) -> str:
    """Of `debug.spread` bars: the share of the changed elements by the size of their change."""
    total = sum(step.elements for step in steps) or 1
    return bars(
        "Share of the changed elements, by the size of their change",
        f"{total} elements that changed; each bar is a third of the size of the next.",
        [Bar(f"{step.least:.2g} to {step.most:.2g}", step.elements / total) for step in steps],
    )


def _height(value: Any) -> float | None:
    return float(value) if isinstance(value, bool | int | float) else None


def _two(found: Item) -> str:
    before, after = found["from"]["position"], found["to"]["position"]
    layers = found["layers"]
    rows = [
        Bar(one["name"], one["relative_norm"], alert=one["became_not_finite"] > 0)
        for one in layers[:_MOST_BARS]
    ]
    title = f"{found['model']}: {before} to {after}"
    shown = f"The {len(rows)} that moved farthest of" if len(rows) < len(layers) else "All"
    return bars(
        title,
        f"{shown} {len(layers)} layers that differ, each with the norm of its change over the norm "
        "before. Red ones have elements that are not finite any more.",
        rows,
    )


def _each(found: Item) -> str:
    columns = [
        one["id"] if one["updates"] == 1 else f"{one['updates']} updates up to {one['id']}"
        for one in found["columns"]
    ]
    rows = [
        (one["name"], [math.inf if v == "new" else v for v in one["relative_norm"]])
        for one in found["layers"][:_MOST_ROWS]
    ]
    many = f"The {len(rows)} that moved farthest of " if len(rows) < len(found["layers"]) else ""
    return heat_map(
        f"{found['model']}: each update from {found['from']} to {found['to']}",
        f"{many}{len(found['layers'])} layers by {len(columns)} columns; the darker, the larger "
        "the norm of the change over the norm before, on a scale of powers of ten. Red is new or "
        "not comparable.",
        columns,
        rows,
    )
