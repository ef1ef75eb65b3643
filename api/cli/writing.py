"""Commands that write: update and rollback. A running server does the work when there is one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from weightledger import IncrementalUpdateRequest, Log
from weightledger.api.cli import output
from weightledger.api.cli.client import Client
from weightledger.api.cli.options import (
    DEFAULT_DATA_DIR,
    ApiKey,
    Database,
    DataDir,
    Json,
    Model,
    Url,
)
from weightledger.api.cli.reading import parse_json
from weightledger.api.cli.source import choose_model, open_ledger, server_url
from weightledger.ledger.manager import update_result


def update(
    parameter: Annotated[str, typer.Argument(help="The parameter's name.")],
    data: Annotated[
        str, typer.Option(help="JSON: the parameter's shape, flat, or one number; or @file.")
    ],
    update_type: Annotated[
        str, typer.Option("--type", help="additive, multiplicative or replace.")
    ] = "additive",
    learning_rate: Annotated[float, typer.Option("--lr", help="In [0, 1].")] = 0.01,
    metadata: Annotated[str | None, typer.Option(help="A JSON object, or @file.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Apply one update to one parameter."""
    body: dict[str, Any] = {
        "parameter_name": parameter,
        "update_data": parse_json("--data", data),
        "learning_rate": learning_rate,
        "update_type": update_type,
    }
    if metadata is not None:
        body["metadata"] = parse_json("--metadata", metadata)
    server = server_url(url, data_dir)
    if server is not None:
        result = Client(server, api_key).update(body)["data"]
        result.setdefault("success", True)
    else:
        with local_log(data_dir, database, model) as log:
            result = update_result(log.apply(IncrementalUpdateRequest(**body)))
    output.facts(result, as_json=as_json)
    if not result["success"]:
        raise typer.Exit(1)


def rollback(
    to: Annotated[str, typer.Option(help="A position: version id, seq:N, head~N, a time …")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Move the model to another state, bit for bit."""
    server = server_url(url, data_dir)
    if server is not None:
        result = Client(server, api_key).rollback(to)["data"]
    else:
        with local_log(data_dir, database, model) as log:
            event = log.rollback(to)
            result = {"rolled_back_to": to, "seq": event.seq, "digest": event.state_after.hex()}
    output.facts(result, as_json=as_json)


@contextlib.contextmanager
def local_log(data_dir: Path, database: str | None, model: str | None) -> Iterator[Log]:
    """The log of a model that no server serves: the next start shows what is written here."""
    with open_ledger(data_dir, database) as ledger:
        yield ledger.model(choose_model(ledger, model))
