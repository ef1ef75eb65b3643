"""`weightledger bisect run`: a judge decides, until the event is known."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightledger.api.cli import bisect_output
from weightledger.api.cli.noise import Confidence, Noisy, with_noise
from weightledger.api.cli.options import Json, Model
from weightledger.api.cli.parallel import for_judges, sharing
from weightledger.api.cli.search_file import State, file_of, held
from weightledger.api.cli.searched import RemoteSearch, searching
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger.debug.bisect import bisection, running
from weightledger.ledger.debug.bisect.bisection import Bisection, Judged, Rules
from weightledger.ledger.debug.bisect.panels import panel
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.parallel import Executor
from weightledger.ledger.parallel.local import ALONE

if TYPE_CHECKING:
    from weightledger.ledger.debug.bisect.judges import Judge, NamedJudge

BUILT_IN = "built-in"
_DROP = 0.02


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
    with (
        _sharing(settings, evaluator, timeout) as executor,
        searching(settings, model) as search,
        held(file_of(settings, search.model, state)) as file,
    ):
        going = bisection.load(file)
        rules = with_noise(going.rules, noisy, confidence)
        if metric is not None:
            rules = replace(
                rules,
                metric=metric,
                drop=_DROP if drop is None else drop,
                lower_is_better=lower_is_better,
            )
        _require_same(going, rules)
        going = replace(going, rules=rules)

        def told(now: Bisection, one: Judged) -> None:
            bisection.save(file, now)
            bisect_output.verdict(now, one)

        cost: dict[str, Any] = {}
        if isinstance(search, RemoteSearch) and evaluator == BUILT_IN:
            if settings.jobs > 1 or timeout is not None:
                raise FlagError(
                    "the server's evaluator judges one state at a time, within its own limit: "
                    "leave out --jobs and --timeout",
                    param="jobs",
                )
            going = search.judged_there(going, most, told)
        else:
            if (
                executor is not None
                and isinstance(search, RemoteSearch)
                and settings.executor == "ray"
            ):
                raise FlagError(
                    "states of a server are judged by processes of this machine; for a Ray cluster "
                    "name the log by --database",
                    param="executor",
                )
            judge = _judge(settings, command, evaluator, metric, timeout, executor is not None)
            judges = panel(search, judge, executor or ALONE)
            ran = running.run(going, search, judges, most=most, told=told)
            going = ran.bisection
            cost = {"judging_s": round(ran.judging_s, 3), "path_bytes": ran.path_bytes}
        bisection.save(file, going)
        facts = {**search.report(going), **cost}
        bisect_output.show(facts, as_json)
    if not facts["done"] or facts["first_bad"] is None:
        raise typer.Exit(1)


def _require_same(going: Bisection, rules: Rules) -> None:
    """What was judged one way is not gone on with in another."""
    judged = any(one.by == "judge" for one in going.judged)
    before, now = ((some.metric, some.drop, some.lower_is_better) for some in (going.rules, rules))
    if judged and before != now:
        metric, drop, lower_is_better = before
        better = "lower" if lower_is_better else "higher"
        raise InvalidRequest(
            "states were judged in another way so far, by "
            + (f"{metric}, drop {drop}, {better} is better" if metric else "exit status")
            + ": begin anew with bisect reset and bisect start"
        )


def _sharing(
    settings: Settings, evaluator: str | None, timeout: float | None
) -> AbstractContextManager[Executor | None]:
    """What judges; None where one judge does so in this process.

    An evaluator that has a limit is in a process that can be ended.
    """
    apart = evaluator is not None and timeout is not None
    if settings.jobs == 1 and settings.executor == "local" and not apart:
        return nullcontext()
    return sharing(settings, for_judges)


def _judge(
    settings: Settings,
    command: list[str] | None,
    evaluator: str | None,
    metric: str | None,
    timeout: float | None,
    elsewhere: bool,
) -> "Judge | NamedJudge":
    if command is not None:
        from weightledger.ledger.debug.bisect.judges import CommandJudge

        told = CommandJudge(command, timeout_s=timeout, metric=metric)
        return told.named if elsewhere else told
    from weightledger.api.evaluating import Evaluating, Subject

    assert evaluator is not None
    subject = Subject(settings.model, settings.data_dir, evaluator)
    if elsewhere:
        return Evaluating.named(subject, timeout)
    return Evaluating(subject.model, subject.data_dir, subject.evaluator)
