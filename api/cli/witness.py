"""`weightledger witness serve`: cosign checkpoints of other people's logs."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from weightledger.api.cli.help import App
from weightledger.ledger.audit.notes import VerifierKey
from weightledger.ledger.audit.witness import WitnessBook

app = App(help="Cosign checkpoints of other people's logs.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Cosign checkpoints of other people's logs."""


@app.command()
def serve(
    name: Annotated[
        str, typer.Option(help="The witness's name, such as witness.example/w1; it is for ever.")
    ],
    log: Annotated[
        list[str],
        typer.Option(
            help="The verifier key of a log to witness, as `weightledger checkpoint --key` prints"
            " it. May be given several times, also for one log whose key was rotated."
        ),
    ],
    state: Annotated[
        Path, typer.Option(help="The file it remembers in; its key lies beside it.")
    ] = Path("witness.db"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 2243,
) -> None:
    """Remember the last checkpoint of each log, and cosign those that continue it.

    Run it where whoever runs the ledger cannot reach it. It says at start how logs name it.

    Example: weightledger witness serve --name witness.example/w1 --log 'weightledger/digits/…+…'
    """
    from weightledger.api.server.witness import serve_witness

    keys = [VerifierKey.parse(text) for text in log]
    with contextlib.closing(WitnessBook(name, state, keys)) as book:
        serve_witness(book, host, port)
