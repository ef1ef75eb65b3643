"""`weightledger approvals list | approve | reject`."""

from typing import Annotated

import typer

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

app = App(help="Writes that wait for a second person.", no_args_is_help=True)

_COLUMNS = ("id", "state", "command", "requested_by", "requested_at", "decided_by", "outcome")


@app.command("list")
@configured(*WHERE)
def list_(
    settings: Settings,
    pending: Annotated[bool, typer.Option("--pending", help="Only those that wait.")] = False,
    model: Model = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """Writes that wait for a second person, or did, newest first.

    Example: weightledger approvals list --pending
    """
    with reading(settings, model) as source:
        items = [one for one in source.approvals() if not pending or one["state"] == "pending"]
    output.listing(
        [{**one, "command": one["request"]["command"]} for one in items],
        _COLUMNS,
        id_key="id",
        as_json=as_json,
        as_csv=as_csv,
        quiet=quiet,
    )


add_decision(
    app,
    "approve",
    """Approve what somebody else asked for, and have the server carry it out.

    Example: weightledger approvals approve approval_3 -m 'looked at the diff'
    """,
    lambda server, approval_id: server.decide(approval_id, "approve"),
)
add_decision(
    app,
    "reject",
    """Reject what somebody else asked for: it is never carried out.

    Example: weightledger approvals reject approval_3 -m 'too large a step'
    """,
    lambda server, approval_id: server.decide(approval_id, "reject"),
)
