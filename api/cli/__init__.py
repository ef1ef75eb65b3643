"""The `weightledger` command.

Reading commands work on the database alone, or on a server with --url; writing ones go to the
server that serves the database. Exit status: 0 success, 1 failed or found a problem, 2 usage.
"""

import gc
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from weightledger.api.cli.help import App
from weightledger.api.cli.lazy import Entry, group
from weightledger.api.cli.streams import (
    escape_what_has_no_form,
    forget_output,
    not_written,
    open_closed,
)
from weightledger.ledger.errors import LedgerError

COMMANDS = {
    "serve": Entry("serving:serve", "Serve a model whose every weight change is an event."),
    "follow": Entry("serving:follow", "Serve a model as a replica of the log that others write."),
    "status": Entry("reading:status", "Where a model stands."),
    "log": Entry("log:log", "Events, newest first."),
    "activity": Entry("activity:activity", "How many events there were, by whom and of what kind."),
    "show": Entry("reading:show", "One event, whole."),
    "diff": Entry("comparing:diff", "What differs between two states."),
    "blame": Entry("comparing:blame", "Who touched a parameter, and what each did to it."),
    "step": Entry("step:step", "Walk the history in the terminal, with what each event changed."),
    "update": Entry("writing:update", "Apply one update to one parameter."),
    "rollback": Entry("writing:rollback", "Move the model to another state, bit for bit."),
    "version": Entry("versions:app", "Name states, and list the names."),
    "trials": Entry("trials:app", "Updates on trial beside the state before them."),
    "fleet": Entry("fleet:app", "Replicas: how each stands, and what it served."),
    "rollout": Entry("rollout:app", "Have some of the replicas show another state."),
    "learn": Entry("learning:learn", "Learn from a file through the server."),
    "rules": Entry("rules:app", "The learning rules there are."),
    "metrics": Entry("metrics:app", "What was measured of a model, newest first."),
    "replay": Entry("replaying:replay", "Rebuild a state from the log and write it to a file."),
    "reproduce": Entry(
        "reproducing:reproduce",
        "Answer an old request on the rebuilt state, and compare with the reply of then.",
    ),
    "bisect": Entry(
        "bisecting:app",
        "Find the event that made a model bad, by judging states between a good and a bad one.",
    ),
    "verify": Entry("verification:verify", "Recompute every digest from the log."),
    "checkpoint": Entry(
        "proofs:checkpoint",
        "Print a signed checkpoint: how many events the log has, and the root of their tree.",
    ),
    "proof": Entry(
        "proofs:proof", "Write a proof that an event is in the log: one file, checkable offline."
    ),
    "consistency": Entry(
        "proofs:consistency", "Print a proof that one length of the log continues another."
    ),
    "rotate-signing-key": Entry(
        "proofs:rotate_signing_key", "Sign checkpoints with another key from now on."
    ),
    "witness": Entry("witness:app", "Cosign checkpoints of other people's logs."),
    "export": Entry(
        "proofs:export",
        "Write the log as lines of JSON, to be read and checked without the database.",
    ),
    "sign": Entry(
        "signing:sign",
        "Write a version's weights to a folder, with a signature that model_signing verifies.",
    ),
    "repair": Entry("repair:repair", "Derive anew what is kept beside the log."),
    "backup": Entry(
        "backup:backup", "Copy the whole ledger, as it is at one moment, while it is in use."
    ),
    "restore": Entry(
        "backup:restore",
        "Make a new ledger of a backup, in a database of either kind that holds none.",
    ),
    "move": Entry("backup:move", "Keep large payloads and snapshots at another place from now on."),
    "import": Entry("importing:import_", "Record the weights of a checkpoint as one event."),
    "redact": Entry("redaction:redact", "Take away what was written beside events."),
    "gc": Entry("retention:gc", "Drop what no listed version needs."),
    "approvals": Entry("approvals:app", "Writes that wait for a second person."),
    "hold": Entry("holds:app", "Legal holds: versions that have to be kept."),
    "keys": Entry("keys:app", "API keys: who may ask a server, and for what."),
    "config": Entry("configuration:app", "The settings in force, and all there are."),
    "db": Entry("database:app", "The database's tables and roles."),
}

app = App(
    name="weightledger",
    cls=group(COMMANDS),
    help="An event-sourced ledger of live model weights.",
    no_args_is_help=True,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"weightledger {version('weightledger')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """An event-sourced ledger of live model weights."""


def main() -> None:
    """Entry point: errors the ledger raises on purpose become one line on stderr."""
    # What is imported stays. To look through it for garbage each 700 objects was a sixth of what it
    # takes to import a server's modules.
    gc.set_threshold(50_000)
    open_closed()
    escape_what_has_no_form()
    # When numpy is imported its BLAS starts a thread for each further core, which looks for work
    # for some 30 ms of processor time before it sleeps: for 2^4 cycles, the fewest it takes.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        said = not_written(error)
        if said is None and not isinstance(error, BrokenPipeError):
            raise
        forget_output()
        if said is not None:
            print(f"weightledger: {said}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except LedgerError as error:
        from weightledger.api.plain_text import plain
        from weightledger.api.server.sources import FlagError

        print(f"weightledger: {plain(str(error))}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, FlagError) else 1)
