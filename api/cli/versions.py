"""`weightledger version create | list | show | pin | unpin`."""

from pathlib import Path
from typing import Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.client import Client
from weightledger.api.cli.options import (
    DEFAULT_DATA_DIR,
    ApiKey,
    Csv,
    Database,
    DataDir,
    Json,
    Model,
    Quiet,
    Url,
)
from weightledger.api.cli.source import open_history, server_url
from weightledger.api.cli.writing import local_log
from weightledger.api.rest.schemas import iso_time
from weightledger.ledger.errors import NotFound
from weightledger.ledger.history.versions import ModelVersion

app = typer.Typer(help="Name states, and list the names.", no_args_is_help=True)

_COLUMNS = ("version_id", "recorded_at", "is_active", "pinned", "seq", "description")


@app.command()
def create(
    description: Annotated[str, typer.Argument(help="1 to 500 characters.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Name the current state."""
    server = server_url(url, data_dir)
    if server is not None:
        version_id = Client(server, api_key).create_version(description)["data"]["version_id"]
    else:
        with local_log(data_dir, database, model) as log:
            version_id = log.create_version(description).name
    output.facts({"version_id": version_id}, as_json=as_json)


@app.command("list")
def list_(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """Versions, newest first."""
    with open_history(data_dir, database, model) as history:
        items = [_item(version) for version in history.versions()]
    output.listing(
        items, _COLUMNS, id_key="version_id", as_json=as_json, as_csv=as_csv, quiet=quiet
    )


@app.command()
def show(
    version_id: Annotated[str, typer.Argument(help="The version's id.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """One listed version."""
    with open_history(data_dir, database, model) as history:
        found = [v for v in history.versions() if v.version_id == version_id]
    if not found:
        raise NotFound(f"Version {version_id} not found")
    output.facts(_item(found[0]), as_json=as_json)


@app.command()
def pin(
    version_id: Annotated[str, typer.Argument(help="The version's id.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Keep a version for ever: it is never retired, and gc keeps its state."""
    _set_pin(version_id, True, data_dir, database, model, url, api_key, as_json)


@app.command()
def unpin(
    version_id: Annotated[str, typer.Argument(help="The version's id.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Let a version be retired again."""
    _set_pin(version_id, False, data_dir, database, model, url, api_key, as_json)


def _set_pin(
    version_id: str,
    pinned: bool,
    data_dir: Path,
    database: str | None,
    model: str | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    server = server_url(url, data_dir)
    if server is not None:
        Client(server, api_key).pin(version_id, pinned)
    else:
        with local_log(data_dir, database, model) as log:
            log.pin(version_id) if pinned else log.unpin(version_id)
    output.facts({"version_id": version_id, "pinned": pinned}, as_json=as_json)


def _item(version: ModelVersion) -> dict[str, object]:
    return {
        **version.to_dict(),
        "recorded_at": iso_time(int(version.timestamp * 1_000_000)),
        "pinned": version.pinned,
        "seq": version.seq,
        "digest": version.digest.hex(),
    }
