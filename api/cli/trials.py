"""`weightledger trials list | promote | abort`."""

from weightledger.api.cli import output
from weightledger.api.cli.deciding import add_decision
from weightledger.api.cli.help import App
from weightledger.api.cli.options import (
    WHERE,
    Csv,
    Json,
    Model,
    Quiet,
    configured,
)
from weightledger.api.cli.source import reading
from weightledger.api.server.settings import Settings

app = App(help="Updates on trial beside the state before them.", no_args_is_help=True)

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
