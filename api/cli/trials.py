"""`weightledger trials list | evidence | promote | abort`."""

from typing import Any

from weightledger.api.cli import output
from weightledger.api.cli.deciding import Id, add_decision
from weightledger.api.cli.help import App
from weightledger.api.cli.options import (
    WHERE,
    Csv,
    Json,
    Model,
    Quiet,
    configured,
)
from weightledger.api.cli.source import reading, writing
from weightledger.api.server.settings import Settings

app = App(help="Updates on trial beside the state before them.", no_args_is_help=True)

_COLUMNS = ("id", "status", "policy", "beside", "requests_old", "requests_new", "reason")

_NUMBERS = ("estimate", "lower", "upper", "limit", "statistic", "needed")
_EVIDENCE = ("metric", "aspect", "n_old", "n_new", *_NUMBERS)


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
def evidence(
    settings: Settings,
    trial: Id,
    model: Model = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """How much worse the new state is, by test, oldest first; harm is a lower bound above limit.

    A server knows it of the trial that it runs, and of the last that it ran.

    Example: weightledger trials evidence update_3
    """
    server = writing(settings, model)
    assert server is not None, "without --offline there is a server, or an error"
    told = server.trial_evidence(trial)
    items = [
        {**{name: one[name] for name in ("metric", "aspect", "limit", "needed")}, **point}
        for one in told["series"]
        for point in one["points"]
    ]
    if not (as_json or as_csv or quiet):
        items = [{**one, **_short(one)} for one in items]
    output.listing(items, _EVIDENCE, id_key="at", as_json=as_json, as_csv=as_csv, quiet=quiet)


add_decision(
    app,
    "promote",
    """Let every request meet the state that is on trial.

    Example: weightledger trials promote update_3 -m 'looked at the answers'
    """,
    lambda server, trial: dict(server.end_trial(trial, "promote")["data"]),
)
add_decision(
    app,
    "abort",
    """Roll the state that is on trial back.

    Example: weightledger trials abort update_3 -m 'users complain'
    """,
    lambda server, trial: dict(server.end_trial(trial, "abort")["data"]),
)


def _short(item: dict[str, Any]) -> dict[str, Any]:
    """For people: three digits that count."""
    return {name: None if item[name] is None else f"{item[name]:.3g}" for name in _NUMBERS}
