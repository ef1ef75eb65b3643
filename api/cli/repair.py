"""`weightledger repair`."""

from typing import Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.local import choose_model, require_ledger
from weightledger.api.cli.options import Actor, Json, Model, Reason, configured
from weightledger.api.cli.source import offline_caller
from weightledger.api.server.folder import holder
from weightledger.api.server.settings import Settings
from weightledger.ledger.errors import LedgerInUse
from weightledger.ledger.events import Annotation


@configured("data_dir", "database")
def repair(
    settings: Settings,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is wrong, and change nothing.")
    ] = False,
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Derive anew what is kept beside the log.

    Indexes, the tables by which events are found, and snapshots that do not verify. The log itself
    is not touched, and what was done is recorded in it. Stop the server first.

    Exit status 1 when something is wrong and was not put right.

    Example: weightledger repair --dry-run
    """
    from weightledger import Ledger
    from weightledger.ledger.audit.repair import repair as put_right

    require_ledger(settings)
    if not dry_run and holder(settings.data_dir) is not None:
        raise LedgerInUse(f"a server holds {settings.data_dir}: stop it, then repair")
    caller = offline_caller(reason, actor)
    with Ledger.open(settings.update_config().url, upgrade=False, guarded=False) as ledger:
        chosen = choose_model(ledger.models(), model)
        note = Annotation(caller.actor, caller.reason)
        report = put_right(ledger.history(chosen), dry_run=dry_run, note=note)
    output.facts(
        {
            "model": report.model,
            "dry_run": dry_run,
            "wrong": report.wrong,
            "snapshots_rewritten": [] if dry_run else list(report.snapshots),
            "recorded_as": report.event.name if report.event else None,
        },
        as_json=as_json,
    )
    if report.wrong and report.event is None:
        raise typer.Exit(1)
