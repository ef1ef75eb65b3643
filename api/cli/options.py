"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[
    Path,
    typer.Option("--data-dir", envvar="WEIGHTLEDGER_DATA_DIR", help="The data folder."),
]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="WEIGHTLEDGER_DATABASE",
        help="A database URL, instead of SQLite in the data folder.",
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", help="The model's name; not needed when there is one.")
]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="WEIGHTLEDGER_URL", help="The server to talk to."),
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="WEIGHTLEDGER_API_KEY", help="The server's key.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")]

DEFAULT_DATA_DIR = Path("weightledger-data")
