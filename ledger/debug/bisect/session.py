"""What every face asks of a bisection: begin, tell, run, and say where it has come to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from weightledger.ledger.debug.bisect.bisection import (
    MOST_EVALUATIONS,
    Bisection,
    End,
    Judged,
    Rules,
    Search,
)
from weightledger.ledger.debug.bisect.candidates import Candidates, Step, candidates
from weightledger.ledger.debug.bisect.judges import CalledJudge, Judge
from weightledger.ledger.debug.bisect.running import Ran, run
from weightledger.ledger.debug.bisect.search import Verdict
from weightledger.ledger.debug.diff import diff
from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import Event
from weightledger.ledger.history.positions import iso_time, resolve
from weightledger.ledger.history.reader import History
from weightledger.ledger.monitoring.evaluation import Scores

_MOST_SUSPECTS = 10  # shown where there are several


def start(
    history: History, good: str | None = None, bad: str | None = None, rules: Rules | None = None
) -> Bisection:
    """A bisection of a log; either end may be told later.

    Raises NotFound for a position that does not exist, and what `candidates` raises.
    """
    origin = history.require(0).hash.hex()
    new = Bisection(
        history.model, origin, _end(history, good), _end(history, bad), rules or Rules()
    )
    if new.good is not None and new.bad is not None:
        way(history, new)
    return new


def tell(
    history: History, bisection: Bisection, verdict: Verdict, position: str | None = None
) -> Bisection:
    """The same with a verdict on a position; by default on the state to be judged next.

    While an end is missing, a good or bad position is that end, and the head is what is bad unless
    it is said. Raises InvalidRequest for a verdict that contradicts others.
    """
    _require_own(history, bisection)
    missing = bisection.good is None if verdict == "good" else bisection.bad is None
    if verdict != "skip" and missing:
        if position is None and verdict == "good":
            raise InvalidRequest("say which state is good: bisect good POSITION", param="good")
        end = _end(history, position or "head")
        told = replace(bisection, good=end) if verdict == "good" else replace(bisection, bad=end)
        if told.good is not None and told.bad is not None:
            way(history, told)
        return told
    if bisection.good is None or bisection.bad is None:
        other = "good" if bisection.good is None else "bad"
        raise InvalidRequest(f"say first which state is {other}: bisect {other} POSITION")
    path = way(history, bisection)
    search = Search(bisection, path)
    if position is None:
        places = search.probes()
        if not places:
            raise InvalidRequest("nothing is left to be judged; say which state is meant")
        seq = path.node(places[0])
    else:
        seq = resolve(history.store, position).node
    judged = Judged(seq, verdict)
    search.tell(judged)
    search.outcome()  # raises where it contradicts another
    return bisection.told(judged)


def way(history: History, bisection: Bisection) -> Candidates:
    """The steps between both ends; InvalidRequest while one is missing or for another's log."""
    _require_own(history, bisection)
    if bisection.good is None or bisection.bad is None:
        raise InvalidRequest("a bisection needs a good and a bad state: bisect start --good --bad")
    good, bad = (
        resolve(history.store, f"seq:{end.seq}") for end in (bisection.good, bisection.bad)
    )
    return candidates(history, good, bad)


def told_all(
    history: History,
    good: str,
    bad: str,
    rules: Rules,
    verdicts: Sequence[tuple[Verdict, str]],
) -> Bisection:
    """A bisection with all verdicts at once, for who keeps them elsewhere; raises as `tell`."""
    bisection = start(history, good, bad, rules)
    judged = [
        Judged(resolve(history.store, position).node, verdict) for verdict, position in verdicts
    ]
    search = Search(bisection, way(history, bisection))
    for one in judged:
        search.tell(one)
    search.outcome()
    return bisection.told(*judged)


def judge_all(
    history: History,
    bisection: Bisection,
    judge: Judge,
    *,
    jobs: int = 1,
    most: int = MOST_EVALUATIONS,
    told: Callable[[Bisection, Judged], None] = lambda bisection, judged: None,
) -> Ran:
    """Let a judge decide until the step is known; see `running.run`."""
    path = way(history, bisection)
    return run(bisection, path, Walker(history), judge, jobs=jobs, most=most, told=told)


def bisect(
    history: History,
    good: str,
    bad: str,
    judge: Callable[[ReplayedState], bool | Mapping[str, float] | Scores | None],
    rules: Rules | None = None,
) -> dict[str, Any]:
    """Find the state change that made a model bad, with a function as judge; see `report`.

    The judge gets a state and says True (good), False (bad) or None (cannot be judged); with
    `rules.metric` it gives metrics instead.
    """
    ran = judge_all(history, start(history, good, bad, rules), CalledJudge(judge))
    return report(history, ran.bisection)


def report(history: History, bisection: Bisection) -> dict[str, Any]:
    """Where a bisection has come to, as JSON.

    `next` is the state to be judged, None when the search is over or an end is missing; `first_bad`
    is the step to blame and `diff` what it changed, `suspected` the likeliest while that is not
    known; `undo` are the commands that would mend the live model.
    """
    _require_own(history, bisection)
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
    facts["suspected"] = suspects(history, bisection, _MOST_SUSPECTS)
    return facts


def suspects(history: History, bisection: Bisection, most: int) -> list[dict[str, Any]]:
    """The steps that may be to blame, likeliest first, each with its probability."""
    path = way(history, bisection)
    listed = []
    for place, probability in Search(bisection, path).probabilities()[:most]:
        step = path.step(place)
        name = history.require(step.seq).name
        listed.append(
            {"id": name, "seq": step.seq, "undone": step.undone, "probability": probability}
        )
    return listed


def undo(history: History, event: Event, step: Step) -> list[str]:
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
    history: History, event: Event, step: Step, probability: float | None
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


def _end(history: History, position: str | None) -> End | None:
    if position is None:
        return None
    named = resolve(history.store, position)
    return End(named.text, named.node)


def _require_own(history: History, bisection: Bisection) -> None:
    """InvalidRequest for a bisection of another log."""
    if (history.model, history.require(0).hash.hex()) != (bisection.model, bisection.origin):
        raise InvalidRequest(
            f"a bisection of another ledger's {bisection.model!r} is going on here; end it with: "
            "weightledger bisect reset"
        )
