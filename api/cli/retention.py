"""`weightledger gc`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn

from weightledger import Ledger
from weightledger.api.cli import output
from weightledger.api.cli.local import choose_model, require_ledger
from weightledger.api.cli.options import Actor, Json, Model, Reason, configured
from weightledger.api.cli.source import offline_caller
from weightledger.api.server.settings import Settings
from weightledger.ledger.blobs import MIN_GRACE_S
from weightledger.ledger.retention import collect


@configured("data_dir", "database")
def gc(
    settings: Settings,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and drop nothing.")
    ] = False,
    grace: Annotated[
        float, typer.Option(help="Seconds for which everything new is kept whatever it is.")
    ] = MIN_GRACE_S,
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Drop what no listed version needs.

    A server may go on serving meanwhile.

    The head, the listed versions and what is younger than the grace period stay restorable. Other
    positions become "pruned"; their events and digests stay. Stopped half-way, it goes on with the
    next run.

    Example: weightledger gc --dry-run
    """
    require_ledger(settings)
    with (
        Ledger.open(settings.update_config().url, upgrade=False) as ledger,
        Progress(
            TextColumn("{task.description}"),
            TextColumn("{task.completed}"),
            console=Console(stderr=True),
            transient=True,
        ) as bar,
    ):
        chosen = choose_model(ledger.models(), model)
        task = bar.add_task("reading", total=None)
        report = collect(
            ledger.history(chosen),
            dry_run=dry_run,
            grace_s=grace,
            caller=offline_caller(reason, actor),
            progress=lambda what, done: bar.update(task, description=what, completed=done),
        )
    output.facts(
        {
            "model": chosen,
            "dry_run": report.dry_run,
            "states_retained": report.retained,
            "states_pruned": report.pruned,
            "snapshots_dropped": report.snapshots,
            "blobs_deleted": report.blobs,
            "bytes_freed": report.bytes,
            "leftovers_deleted": report.leftovers,
        },
        as_json=as_json,
    )
