"""`weightledger version create | list | show`."""

from typing import Annotated

import typer

from api.cli import output
from api.cli.client import Client
from api.cli.options import (
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
from api.cli.source import open_history, server_url
from api.cli.writing import local_log
from api.schemas import iso_time
from ledger.errors import NotFound
from ledger.versions import ModelVersion

app = typer.Typer(help="Name states, and list the names.", no_args_is_help=True)

_COLUMNS = ("version_id", "recorded_at", "is_active", "seq", "description")


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


def _item(version: ModelVersion) -> dict[str, object]:
    return {
        **version.to_dict(),
        "recorded_at": iso_time(int(version.timestamp * 1_000_000)),
        "seq": version.seq,
        "digest": version.digest.hex(),
    }
