"""`weightledger backup`, `restore` and `move`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn

from weightledger.api.cli import output
from weightledger.api.cli.local import require_ledger
from weightledger.api.cli.options import Json, configured
from weightledger.api.server.settings import Settings
from weightledger.ledger import backup as backups
from weightledger.ledger import permissions, restoring
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.sql.presence import servers

Check = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Recompute every digest of the copy.")
]

_IN_DATABASE = "database"


@configured("data_dir", "database")
def backup(
    settings: Settings,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder for the copy.")],
    check: Check = True,
    as_json: Json = False,
) -> None:
    """Copy the whole ledger, as it is at one moment, while it is in use.

    The copy is a SQLite ledger with all blobs inside, whatever the ledger itself is kept in:
    reading commands take it with --data-dir.

    Example: weightledger backup /backups/monday
    """
    require_ledger(settings)
    with _shown() as told:
        copied = backups.backup(settings.update_config().url, folder, check=check, progress=told)
    _say(copied, folder, check, as_json)


@configured("data_dir", "database")
def restore(
    settings: Settings,
    folder: Annotated[Path, typer.Argument(help="What `weightledger backup` made.")],
    blobs: Annotated[
        str | None, typer.Option("--blobs", help="Where blobs go; by default the database.")
    ] = None,
    check: Check = True,
    as_json: Json = False,
) -> None:
    """Make a new ledger of a backup, in a database of either kind that holds none.

    Example: weightledger restore /backups/monday --data-dir ./weightledger-data
    """
    config = settings.update_config()
    if config.database_url is None:
        permissions.make_folder(config.file.parent)
    with _shown() as told:
        copied = restoring.restore(folder, config.url, blob_url=blobs, check=check, progress=told)
    _say(copied, folder, check, as_json)


@configured("data_dir", "database")
def move(
    settings: Settings,
    blobs: Annotated[
        str,
        typer.Argument(help="The new blob URL or folder; `database` for the database itself."),
    ],
    as_json: Json = False,
) -> None:
    """Keep large payloads and snapshots at another place from now on.

    Blobs that are there already, because their folder was moved, stay as they are; the others are
    copied. Stop whoever writes first.

    Example: weightledger move /srv/new-blobs
    """
    require_ledger(settings)
    url = settings.update_config().url
    serving = servers(url)
    if serving:
        raise InvalidRequest(f"{serving[0].url} serves this ledger: stop it first")
    with _shown() as told:
        copied = backups.move_blobs(url, None if blobs == _IN_DATABASE else blobs, progress=told)
    output.facts({"blobs": blobs, "blobs_copied": copied}, as_json=as_json)


def _say(copied: backups.Copied, folder: Path, check: bool, as_json: bool) -> None:
    output.facts(
        {
            "backup": str(folder),
            "models": copied.models,
            "events": copied.events,
            "blobs_from_beside": copied.blobs,
            "verified": check,
        },
        as_json=as_json,
    )


@contextlib.contextmanager
def _shown() -> Iterator[backups.Progress]:
    """Progress on stderr."""
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda what, done: bar.update(task, description=what, completed=done)
