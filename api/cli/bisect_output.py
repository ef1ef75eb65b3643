"""A bisection on a terminal: verdicts as they come, where it stands, what mends the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from weightledger.api.cli import output
from weightledger.ledger.debug.bisect.bisection import Bisection, Judged

Item = Mapping[str, Any]

_SHOWN = 20
_BARS = 40
_OF_DIFF = ("name", "changed", "largest_change", "relative_norm")


def verdict(now: Bisection, judged: Judged) -> None:
    """One verdict of a judge, on stderr."""
    score = "" if judged.score is None else f" ({now.rules.metric} {judged.score:.6g})"
    why = "" if judged.detail is None else f" ({judged.detail})"
    output.note(f"seq:{judged.seq} is {judged.verdict}{score}{why}")


def show(facts: Item, as_json: bool) -> None:
    """Where a search stands, and what to do next."""
    if as_json:
        output.facts(facts, as_json=True)
        return
    if facts["good"] is None or facts["bad"] is None:
        missing = "good" if facts["good"] is None else "bad"
        output.note(f"say which state is {missing}: weightledger bisect {missing} POSITION")
    if facts["next"] is not None:
        seq = facts["next"]["seq"]
        output.note(
            f"judge seq:{seq}, then say bisect good, bad or skip; to get it: "
            f"weightledger replay --to seq:{seq} -o FILE"
        )
    shown = {key: value for key, value in facts.items() if value not in (None, [])}
    if facts["diff"] is not None:
        shown["diff"] = [
            {key: one[key] for key in _OF_DIFF} for one in facts["diff"]["by_tensor"][:_SHOWN]
        ]
    shown.pop("undo", None)
    if facts["first_bad"] is not None or (facts["next"] and "probability" not in facts):
        shown.pop("suspected", None)
    output.facts(shown, as_json=False)
    for line in facts["undo"]:
        typer.echo(f"to mend it: {line}")


def suspects(chances: Sequence[Item]) -> None:
    """The steps that may be to blame, likeliest first, each with a bar."""
    most = max((one["probability"] for one in chances), default=1.0)
    rows = [
        {
            "seq": one["seq"],
            "id": one["id"],
            "": "taken back" if one["undone"] else None,
            "probability": f"{one['probability']:.4f}",
            "share": "█" * max(1, round(_BARS * one["probability"] / most)),
        }
        for one in chances
    ]
    columns = [c for c in ("seq", "id", "", "probability", "share") if any(row[c] for row in rows)]
    output.table(rows, columns, whole={"seq", "id"})
