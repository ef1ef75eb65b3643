"""`weightledger trials list | promote | abort`."""

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

app = App(help="Updates on trial beside the state before them.", no_args_is_help=True)

TrialId = Annotated[str, typer.Argument(metavar="TRIAL", help="The newest update's id on trial.")]

_COLUMNS = ("id", "status", "policy", "beside", "requests_old", "requests_new", "reason")


@app.command("list")
@configured(*WHERE)
def list_(
    settings: Settings,
    model: Model = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """The trial that runs, and the last that ended, newest first.

    Example: weightledger trials list
    """
    with reading(settings, model) as source:
        items = source.trials()
    output.listing(items, _COLUMNS, id_key="id", as_json=as_json, as_csv=as_csv, quiet=quiet)


@app.command()
@configured(*WHERE)
def promote(
    settings: Settings,
    trial: TrialId,
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Let every request meet the state that is on trial.

    Example: weightledger trials promote update_3 -m 'looked at the answers'
    """
    _end(settings, trial, "promote", reason, actor, model, as_json)


@app.command()
@configured(*WHERE)
def abort(
    settings: Settings,
    trial: TrialId,
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Roll the state that is on trial back.

    Example: weightledger trials abort update_3 -m 'users complain'
    """
    _end(settings, trial, "abort", reason, actor, model, as_json)


def _end(
    settings: Settings,
    trial: str,
    how: str,
    reason: str | None,
    actor: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    server = writing(settings, model, reason=reason, actor=actor)
    assert server is not None, "without --offline there is a server, or an error"
    output.facts(server.end_trial(trial, how)["data"], as_json=as_json)
