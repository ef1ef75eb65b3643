"""`weightledger rollout start | advance | finish | abort | list`."""

from typing import Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.help import App
from weightledger.api.cli.options import (
    WHERE,
    Actor,
    Csv,
    Json,
    Model,
    Quiet,
    Reason,
    configured,
)
from weightledger.api.cli.source import reading, writing
from weightledger.api.server.settings import Settings

app = App(help="Have some of the replicas show another state.", no_args_is_help=True)

_COLUMNS = ("id", "status", "percent", "to", "base", "changed_seq", "changed_at")

Percent = Annotated[int, typer.Option("--percent", min=0, max=100, help="Of the replicas.")]


@app.command("list")
@configured(*WHERE)
def list_(
    settings: Settings,
    model: Model = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """The rollout that runs, and the last that ended, newest first.

    Example: weightledger rollout list
    """
    with reading(settings, model) as source:
        items = source.rollouts()
    output.listing(items, _COLUMNS, id_key="id", as_json=as_json, as_csv=as_csv, quiet=quiet)


@app.command()
@configured(*WHERE)
def start(
    settings: Settings,
    to: Annotated[str, typer.Argument(metavar="POSITION", help="v1, update_3, 12, head …")],
    percent: Percent = 10,
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Have some of the replicas show a state, while the others follow the head.

    With `head` it is the other way round: some go on following, the others stay where they are.

    Example: weightledger rollout start v3 --percent 10 -m 'the canary'
    """
    _write(settings, model, reason, actor, "", {"to": to, "percent": percent}, as_json)


@app.command()
@configured(*WHERE)
def advance(
    settings: Settings,
    percent: Percent,
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Have more of the replicas show it, or fewer.

    Example: weightledger rollout advance --percent 50
    """
    _write(settings, model, reason, actor, "advance", {"percent": percent}, as_json)


@app.command()
@configured(*WHERE)
def finish(
    settings: Settings,
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Make the state that is rolled out the head, which every replica shows from then on.

    Example: weightledger rollout finish -m 'the canary did well'
    """
    _write(settings, model, reason, actor, "finish", {}, as_json)


@app.command()
@configured(*WHERE)
def abort(
    settings: Settings,
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Have every replica show what the others showed.

    Example: weightledger rollout abort -m 'the canary is slower'
    """
    _write(settings, model, reason, actor, "abort", {}, as_json)


def _write(
    settings: Settings,
    model: str | None,
    reason: str | None,
    actor: str | None,
    verb: str,
    body: dict[str, object],
    as_json: bool,
) -> None:
    server = writing(settings, model, reason=reason, actor=actor)
    assert server is not None, "without --offline there is a server, or an error"
    output.facts(server.roll_out(verb, body), as_json=as_json)
