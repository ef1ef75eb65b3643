"""Where a bisection has come to, for people and programs: what is to be judged, who is to blame."""

from collections.abc import Mapping
from typing import Any

from weightledger.ledger.debug.bisect.bisection import Bisection
from weightledger.ledger.debug.bisect.candidates import Candidates, SearchStep
from weightledger.ledger.debug.bisect.ends import require_own, way
from weightledger.ledger.debug.bisect.searching import Search
from weightledger.ledger.debug.diff import diff
from weightledger.ledger.events import Event
from weightledger.ledger.history.positions import iso_time
from weightledger.ledger.history.reader import History

_MOST_SUSPECTS = 20
_COLUMNS = 120  # of a picture


def report(history: History, bisection: Bisection) -> dict[str, Any]:
    """Where a bisection has come to, as JSON.

    `next` is the state to be judged, None when the search is over or an end is missing; `first_bad`
    is the step to blame and `diff` what it changed, `suspected` are the likeliest steps, `undo` the
    commands that would mend the live model.
    """
    require_own(history, bisection)
    rules = bisection.rules
    ends = {
        name: None if end is None else {"position": end.text, "seq": end.seq}
        for name, end in (("good", bisection.good), ("bad", bisection.bad))
    }
    facts: dict[str, Any] = {
        "model": history.model,
        **ends,
        "evaluations": sum(one.by == "judge" for one in bisection.judged),
        "verdicts": len(bisection.judged),
        "done": False,
        "steps": None,
        "suspects": None,
        "next": None,
        "first_bad": None,
        "diff": None,
        "suspected": [],
        "undo": [],
    }
    if rules.noisy:
        facts |= {"confidence": rules.confidence, "probability": None, "entropy_bits": None}
    if bisection.good is None or bisection.bad is None:
        return facts
    path = way(history, bisection)
    search = Search(bisection, path)
    outcome = search.outcome()
    facts |= {"done": outcome.done, "steps": len(path), "suspects": outcome.suspects}
    if rules.noisy:
        facts |= {"probability": outcome.probability, "entropy_bits": outcome.entropy_bits}
    facts["suspected"] = _suspects(history, path, search)
    if outcome.done and outcome.step is not None:
        step = path.step(outcome.step)
        event = history.require(step.seq)
        facts["first_bad"] = _blamed(history, event, step, outcome.probability)
        before, after = path.node(outcome.step - 1), path.node(outcome.step)
        facts["diff"] = diff(history, f"seq:{before}", f"seq:{after}").to_json()
        facts["undo"] = undo(history, event, step)
        return facts
    probes = search.probes()
    if probes:
        node = path.node(probes[0])
        facts["next"] = {"seq": node, "id": history.require(node).name}
    return facts


def chances(history: History, bisection: Bisection) -> dict[str, Any]:
    """What a picture of a search shows: how likely each step is to blame, and the verdicts.

    The way from the good state to the bad one is cut into `columns`, each of as many steps and
    with the probability of them all; a verdict's `at` is its place on the way, 0 to 1.
    """
    path = way(history, bisection)
    search = Search(bisection, path)
    known = dict(search.probabilities())
    per = -(-len(path) // _COLUMNS)
    columns = []
    for first in range(1, len(path) + 1, per):
        last = min(first + per, len(path) + 1) - 1
        columns.append(
            {
                "first_seq": path.step(first).seq,
                "last_seq": path.step(last).seq,
                "steps": last - first + 1,
                "probability": sum(known.get(step, 0.0) for step in range(first, last + 1)),
            }
        )
    assert bisection.good is not None and bisection.bad is not None
    return {
        "object": "bisection",
        "model": history.model,
        "good": bisection.good.text,
        "bad": bisection.bad.text,
        "steps": len(path),
        "columns": columns,
        "verdicts": [
            {
                "seq": one.seq,
                "at": path.place(one.seq) / len(path),
                "verdict": one.verdict,
                "score": one.score,
            }
            for one in bisection.judged
        ],
    }


def _suspects(history: History, path: Candidates, search: Search) -> list[dict[str, Any]]:
    """The steps that may be to blame, likeliest first, each with its probability."""
    listed = []
    for place, probability in search.probabilities()[:_MOST_SUSPECTS]:
        step = path.step(place)
        name = history.require(step.seq).name
        listed.append(
            {"id": name, "seq": step.seq, "undone": step.undone, "probability": probability}
        )
    return listed


def undo(history: History, event: Event, step: SearchStep) -> list[str]:
    """The commands that would mend the live model, the one that loses least first."""
    why = f"-m 'bisect: {event.name} made it bad'"
    if step.undone:
        return [
            f"weightledger rollback --to {event.name} -m 'bisect: without {event.name} it is bad'"
        ]
    at: int | None = history.head().node
    while at is not None and at > event.seq:
        at = history.lineage.parent(at)
    if at != event.seq:
        return []  # it is not part of the live state
    before = [f"weightledger rollback --to seq:{event.parent} {why}"]
    if history.head().node == event.seq:
        return before
    return [f"weightledger rollback --to head --without {event.name} {why}", *before]


def commands(bisection: Bisection) -> list[str]:
    """The commands that lead to this bisection again."""
    rules = bisection.rules
    options = [
        f"--{name} seq:{end.seq}"
        for name, end in (("good", bisection.good), ("bad", bisection.bad))
        if end is not None
    ]
    if rules.noisy:
        options.append("--noisy" + ("" if rules.rate is None else f" {rules.rate}"))
        options.append(f"--confidence {rules.confidence}")
    lines = [" ".join(["weightledger bisect start", *options])]
    for one in bisection.judged:
        details = [one.by]
        if one.score is not None:
            details.append(f"{rules.metric} {one.score:.6g}")
        if one.detail is not None:
            details.append(one.detail)
        lines.append(f"weightledger bisect {one.verdict} seq:{one.seq}  # {', '.join(details)}")
    return lines


def _blamed(
    history: History, event: Event, step: SearchStep, probability: float | None
) -> dict[str, Any]:
    """The facts of the event to blame."""
    note = history.store.annotation(event.seq)
    body = event.body
    rule = body.get("rule")
    facts = {
        "id": event.name,
        "seq": event.seq,
        "kind": event.kind,
        "undone": step.undone,
        "recorded_at": iso_time(event.recorded_at),
        "actor": None if note is None else note.actor,
        "reason": None if note is None else note.reason,
        "operation": body.get("operation"),
        "rule": rule["id"] if isinstance(rule, Mapping) and "id" in rule else None,
        "delta_norm": body.get("delta_norm"),
        "tensors": [{"name": one.name, "changed": one.changed} for one in event.changes],
    }
    return facts if probability is None else {**facts, "probability": probability}
