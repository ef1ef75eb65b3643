"""`weightledger gc`, and pinning versions."""

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn

from weightledger.api.cli import output
from weightledger.api.cli.options import DEFAULT_DATA_DIR, Database, DataDir, Json, Model
from weightledger.api.cli.source import choose_model, open_ledger
from weightledger.ledger.blobs import MIN_GRACE_S
from weightledger.ledger.retention import collect


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and drop nothing.")
    ] = False,
    grace: Annotated[
        float, typer.Option(help="Seconds for which everything new is kept whatever it is.")
    ] = MIN_GRACE_S,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Drop what no listed version needs; a server may go on serving meanwhile.

    The head, the listed versions and what is younger than the grace period stay restorable. Other
    positions become "pruned"; their events and digests stay. Stopped half-way, it goes on with the
    next run.
    """
    with (
        open_ledger(data_dir, database) as ledger,
        Progress(
            TextColumn("{task.description}"),
            TextColumn("{task.completed}"),
            console=Console(stderr=True),
            transient=True,
        ) as bar,
    ):
        chosen = choose_model(ledger, model)
        task = bar.add_task("reading", total=None)
        report = collect(
            ledger.history(chosen),
            dry_run=dry_run,
            grace_s=grace,
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
