"""`weightledger bisect start | good | bad | skip | run | log | visualize | reset`."""

import contextlib
import fcntl
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightledger.api.cli import output
from weightledger.api.cli.help import App, Command
from weightledger.api.cli.local import opened
from weightledger.api.cli.options import Json, Model, configured
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger.debug.bisect import bisection, session
from weightledger.ledger.debug.bisect.bisection import Bisection, Judged, Rules
from weightledger.ledger.debug.bisect.search import Verdict
from weightledger.ledger.errors import InvalidRequest, StorageError
from weightledger.ledger.history.reader import History

if TYPE_CHECKING:
    from weightledger.ledger.debug.bisect.judges import Judge

app = App(
    help="Find the event that made a model bad, by judging states between a good and a bad one.",
    no_args_is_help=True,
)

State = Annotated[
    Path | None,
    typer.Option(
        "--state", help="The file that the search is kept in; by default beside the data folder."
    ),
]
Where = Annotated[
    str | None, typer.Argument(metavar="POSITION", help="By default the state to be judged next.")
]
Noisy = Annotated[
    str | None,
    typer.Option(
        metavar="[RATE]",
        help="The judge errs: so often (0.1 is one time in ten), or as often as it turns out.",
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        help="Of a noisy search: how certain it has to be to end.",
        show_default=str(bisection.CONFIDENCE),
    ),
]

_WHERE = ("data_dir", "database")
_LEARNT = "learnt"
_BARS = 40
_SHOWN = 20
_OF_DIFF = ("name", "changed", "largest_change", "relative_norm")


class _RateMayBeMissing(Command):
    """`--noisy` stands alone or before a number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        own = given[: given.index("--")] if "--" in given else given
        for at, word in enumerate(own):
            after = own[at + 1] if at + 1 < len(own) else ""
            if word == "--noisy" and not re.fullmatch(r"-?[\d.][\w.+-]*", after):
                given[at] = f"--noisy={_LEARNT}"
        return super().parse_args(ctx, given)


@app.command(cls=_RateMayBeMissing)
@configured(*_WHERE)
def start(
    settings: Settings,
    good: Annotated[
        str | None, typer.Option(metavar="POSITION", help="A state that is good.")
    ] = None,
    bad: Annotated[
        str | None, typer.Option(metavar="POSITION", help="A state that is bad.")
    ] = None,
    noisy: Noisy = None,
    confidence: Confidence = None,
    state: State = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Begin a search.

    What is searched is the way from the good state to the bad one, across rollbacks where there are
    some between them.

    Example: weightledger bisect start --good v1 --bad head
    """
    rules = _rules(Rules(), noisy, confidence)
    with opened(settings, model) as history, _held(_file(settings, history, state)) as file:
        if file.exists():
            raise InvalidRequest(
                f"a bisection is going on in {file}; end it with: weightledger bisect reset"
            )
        begun = session.start(history, good, bad, rules)
        bisection.save(file, begun)
        _show(history, begun, as_json)


@app.command()
@configured(*_WHERE)
def good(
    settings: Settings,
    position: Where = None,
    state: State = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Say that a state is good.

    Example: weightledger bisect good v1
    """
    _tell(settings, "good", position, state, model, as_json)


@app.command()
@configured(*_WHERE)
def bad(
    settings: Settings,
    position: Where = None,
    state: State = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Say that a state is bad.

    Example: weightledger bisect bad head
    """
    _tell(settings, "bad", position, state, model, as_json)


@app.command()
@configured(*_WHERE)
def skip(
    settings: Settings,
    position: Where = None,
    state: State = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Say that a state cannot be judged.

    Example: weightledger bisect skip seq:12
    """
    _tell(settings, "skip", position, state, model, as_json)


@app.command(cls=_RateMayBeMissing)
@configured(*_WHERE)
def run(
    settings: Settings,
    command: Annotated[
        list[str] | None,
        typer.Argument(help="The judge, after --; it gets a safetensors file as last argument."),
    ] = None,
    evaluator: Annotated[
        str | None,
        typer.Option(help="In the command's place: 'built-in', or module:function of a module."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Judge by what is measured: the command prints it as its last line."),
    ] = None,
    drop: Annotated[
        float | None, typer.Option(help="How much worse than the good state is bad.")
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="More of the metric is worse.")
    ] = False,
    noisy: Noisy = None,
    confidence: Confidence = None,
    jobs: Annotated[int, typer.Option(min=1, help="States judged at a time.")] = 1,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for one state; then it counts as not judged.")
    ] = None,
    most: Annotated[
        int, typer.Option("--most", min=1, help="How many states are judged at most.")
    ] = bisection.MOST_EVALUATIONS,
    state: State = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Let a judge decide, until the event is known.

    The command gets the path of a safetensors file as its last argument, and WEIGHTLEDGER_SEQ and
    WEIGHTLEDGER_VERSION in its environment. Its exit status says: 0 good, 125 cannot be judged, 1
    to 127 bad, 128 or more ends the search. Stopped at any moment, the same command goes on.

    Exit status 1 when the event is not known for certain.

    Example: weightledger bisect run -- ./judge.py
    """
    if (command is None) == (evaluator is None):
        raise FlagError("say who judges: -- COMMAND, or --evaluator", param="evaluator")
    if timeout is not None and not timeout > 0:
        raise FlagError(f"--timeout takes seconds above 0, got {timeout}", param="timeout")
    if evaluator is not None and metric is None:
        metric = "accuracy"
    if drop is not None and metric is None:
        raise FlagError("--drop is how far a --metric may fall", param="drop")
    with opened(settings, model) as history, _held(_file(settings, history, state)) as file:
        going = bisection.load(file)
        rules = _rules(going.rules, noisy, confidence)
        if metric is not None:
            rules = replace(
                rules,
                metric=metric,
                drop=0.02 if drop is None else drop,
                lower_is_better=lower_is_better,
            )
        _require_same(going, rules)
        going = replace(going, rules=rules)
        with _judge(settings, history, command, evaluator, metric, timeout, jobs) as judge:
            ran = session.judge_all(
                history,
                going,
                judge,
                jobs=jobs,
                most=most,
                told=lambda now, one: _told(file, now, one),
            )
        bisection.save(file, ran.bisection)
        cost = {"judging_s": round(ran.judging_s, 3), "path_bytes": ran.path_bytes}
        _show(history, ran.bisection, as_json, cost)
    if not ran.outcome.done or ran.outcome.step is None:
        raise typer.Exit(1)


@app.command()
@configured(*_WHERE)
def log(
    settings: Settings, state: State = None, model: Model = None, as_json: Json = False
) -> None:
    """What was said so far, as the commands that say it again.

    Example: weightledger bisect log
    """
    with opened(settings, model) as history:
        going = bisection.load(_file(settings, history, state))
    if as_json:
        output.facts(going.to_json(), as_json=True)
        return
    for line in session.commands(going):
        typer.echo(line)


@app.command()
@configured(*_WHERE)
def visualize(
    settings: Settings, state: State = None, model: Model = None, as_json: Json = False
) -> None:
    """Where the search stands: the steps that may be to blame, likeliest first.

    Example: weightledger bisect visualize
    """
    with opened(settings, model) as history:
        going = bisection.load(_file(settings, history, state))
        facts = session.report(history, going)
        chances = session.suspects(history, going, _SHOWN) if facts["steps"] else []
    if as_json:
        output.facts({**facts, "suspected": chances}, as_json=True)
        return
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


@app.command()
@configured(*_WHERE)
def reset(
    settings: Settings, state: State = None, model: Model = None, as_json: Json = False
) -> None:
    """End the search, and forget what was said.

    Example: weightledger bisect reset
    """
    with opened(settings, model) as history:
        file = _file(settings, history, state)
    there = file.exists()
    try:
        file.unlink(missing_ok=True)
        _lock(file).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {file}: {error}") from error
    output.facts({"ended": there}, as_json=as_json)


def _tell(
    settings: Settings,
    verdict: Verdict,
    position: str | None,
    state: Path | None,
    model: str | None,
    as_json: bool,
) -> None:
    with opened(settings, model) as history, _held(_file(settings, history, state)) as file:
        told = session.tell(history, bisection.load(file), verdict, position)
        bisection.save(file, told)
        _show(history, told, as_json)


def _rules(rules: Rules, noisy: str | None, confidence: float | None) -> Rules:
    if confidence is not None:
        rules = replace(rules, confidence=confidence)
    if noisy is None:
        return rules
    if noisy == _LEARNT:
        return replace(rules, noisy=True, rate=None)
    try:
        return replace(rules, noisy=True, rate=float(noisy))
    except ValueError as error:
        if isinstance(error, InvalidRequest):
            raise
        raise FlagError(f"--noisy takes a rate such as 0.1, got {noisy!r}", param="noisy") from None


def _require_same(going: Bisection, rules: Rules) -> None:
    """What was judged one way is not gone on with in another."""
    judged = any(one.by == "judge" for one in going.judged)
    if judged and (going.rules.metric, going.rules.drop) != (rules.metric, rules.drop):
        raise InvalidRequest(
            "states were judged in another way so far, by "
            + (
                f"{going.rules.metric}, drop {going.rules.drop}"
                if going.rules.metric
                else "exit status"
            )
            + ": begin anew with bisect reset and bisect start"
        )


def _file(settings: Settings, history: History, state: Path | None) -> Path:
    """Beside the data folder, one for each model."""
    if state is not None:
        return state
    folder = settings.data_dir.resolve()
    name = re.sub(r"[^\w.-]", "_", history.model)
    return folder.with_name(f"{folder.name}.{name}.bisect.json")


@contextlib.contextmanager
def _held(file: Path) -> Iterator[Path]:
    """The file of a search, for one command at a time."""
    lock = _lock(file)
    try:
        opened_lock = lock.open("w")
    except OSError as error:
        raise StorageError(f"cannot write {lock}: {error}") from error
    with opened_lock:
        try:
            fcntl.flock(opened_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InvalidRequest(f"another command is at this search ({file})") from None
        yield file


def _lock(file: Path) -> Path:
    return file.with_name(file.name + ".lock")


@contextlib.contextmanager
def _judge(
    settings: Settings,
    history: History,
    command: list[str] | None,
    evaluator: str | None,
    metric: str | None,
    timeout: float | None,
    jobs: int,
) -> "Iterator[Judge]":
    if command is not None:
        from weightledger.ledger.debug.bisect.judges import CommandJudge

        yield CommandJudge(command, timeout_s=timeout, metric=metric)
        return
    from weightledger.api.evaluating import Evaluating, EvaluatingApart, Subject

    assert evaluator is not None
    subject = Subject(settings.model, settings.data_dir, evaluator)
    if jobs == 1 and timeout is None:
        yield Evaluating(subject)
        return
    with EvaluatingApart(subject, jobs, timeout) as judge:
        yield judge


def _told(file: Path, now: Bisection, judged: Judged) -> None:
    bisection.save(file, now)
    score = "" if judged.score is None else f" ({now.rules.metric} {judged.score:.6g})"
    why = "" if judged.detail is None else f" ({judged.detail})"
    output.note(f"seq:{judged.seq} is {judged.verdict}{score}{why}")


def _show(
    history: History, going: Bisection, as_json: bool, cost: dict[str, Any] | None = None
) -> None:
    facts = {**session.report(history, going), **(cost or {})}
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
    for name in ("undo", "suspected" if facts["next"] and not going.rules.noisy else ""):
        shown.pop(name, None)
    output.facts(shown, as_json=False)
    for line in facts["undo"]:
        typer.echo(f"to mend it: {line}")
