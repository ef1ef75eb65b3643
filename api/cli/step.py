"""A terminal view that walks the history, each event with what it changed."""

import sys
from typing import Annotated

import typer

from weightledger.api.cli.options import WHERE, Model, configured
from weightledger.api.cli.source import reading
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError


@configured(*WHERE)
def step(
    settings: Settings,
    at: Annotated[
        str, typer.Option(metavar="POSITION", help="Where to begin: v1, update_3, 12, a time …")
    ] = "head",
    model: Model = None,
) -> None:
    """Walk the history in the terminal, with what each event changed.

    Up and down (or k and j) go to newer and older events, Home and End to the newest and the
    oldest that were read, q or Ctrl-C ends. Beside each event stand its diff and the evaluator's
    scores before and after.

    Example: weightledger step --at update_3
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise FlagError("step needs a terminal; for programs there are log --json and diff --json")
    with reading(settings, model) as source:
        start = source.event(at)["seq"]
        # Imports what draws on terminals.
        from weightledger.api.cli.stepping import Stepper

        Stepper(source, start).run()
