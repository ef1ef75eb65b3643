"""`weightledger approvals list | approve | reject`."""

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

app = App(help="Writes that wait for a second person.", no_args_is_help=True)

ApprovalId = Annotated[str, typer.Argument(metavar="APPROVAL", help="Its id, as `list` has it.")]

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


@app.command()
@configured(*WHERE)
def approve(
    settings: Settings,
    approval_id: ApprovalId,
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Approve what somebody else asked for, and have the server carry it out.

    Example: weightledger approvals approve approval_3 -m 'looked at the diff'
    """
    server = writing(settings, model, reason=reason, actor=actor)
    assert server is not None
    output.facts(server.decide(approval_id, "approve"), as_json=as_json)


@app.command()
@configured(*WHERE)
def reject(
    settings: Settings,
    approval_id: ApprovalId,
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Reject what somebody else asked for: it is never carried out.

    Example: weightledger approvals reject approval_3 -m 'too large a step'
    """
    server = writing(settings, model, reason=reason, actor=actor)
    assert server is not None
    output.facts(server.decide(approval_id, "reject"), as_json=as_json)
