"""The `weightledger` command.

Reading commands work on the database alone; writing ones go to the server that holds the data
folder, when one does. Exit status: 0 success, 1 failed or found a problem, 2 usage.
"""

import sys

import typer

from weightledger.api.cli import (
    database,
    learning,
    reading,
    retention,
    rules,
    serving,
    verification,
    versions,
    writing,
)
from weightledger.ledger.errors import LedgerError

app = typer.Typer(
    name="weightledger",
    help="An event-sourced ledger of live model weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serving.serve)
app.command()(reading.status)
app.command()(reading.log)
app.command()(reading.show)
app.command()(reading.replay)
app.command()(verification.verify)
app.command()(writing.update)
app.command()(writing.rollback)
app.command()(retention.gc)
app.command()(learning.learn)
app.add_typer(versions.app, name="version")
app.add_typer(rules.app, name="rules")
app.add_typer(database.app, name="db")


def main() -> None:
    """Entry point: errors the ledger raises on purpose become one line on stderr."""
    try:
        app()
    except LedgerError as error:
        print(f"weightledger: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
