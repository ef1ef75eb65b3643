"""`weightledger keys create | list | show | rotate | revoke`: on the database alone."""

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from weightledger.api.cli import output
from weightledger.api.cli.help import App
from weightledger.api.cli.local import require_ledger
from weightledger.api.cli.options import Actor, Csv, Json, Quiet, configured
from weightledger.api.cli.source import whoami
from weightledger.api.items import key_change_item, key_item
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger.access.keys import SCOPES, ApiKey
from weightledger.ledger.access.records import ApiKeys, Issued
from weightledger.ledger.permissions import make_folder
from weightledger.ledger.store.sql_store import SqlStore

app = App(help="API keys: who may ask a server, and for what.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The key's name: the actor of the events it causes.")]

_COLUMNS = ("name", "scope", "state", "created_at", "created_by", "expires_at", "used_at")
_SPAN = re.compile(r"([0-9]{1,6})(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


@app.command()
@configured("data_dir", "database")
def create(
    settings: Settings,
    name: Name,
    scope: Annotated[
        str,
        typer.Option(
            help="read, write (which includes read) or admin (everything).",
            metavar="|".join(SCOPES),
        ),
    ] = "read",
    expires: Annotated[
        str | None, typer.Option(help="How long it is taken: 12h, 30d … By default for ever.")
    ] = None,
    per_minute: Annotated[
        int | None,
        typer.Option(help="Most requests in a minute, in each server; more are answered 429."),
    ] = None,
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Make a key, and print it: it is shown this once and kept nowhere.

    Servers that are running take it, and ask for a key from then on, within a second.

    Example: weightledger keys create trainer --scope write --expires 30d
    """
    config = settings.update_config()
    if config.database_url is None and not config.file.exists():
        make_folder(settings.data_dir)  # keys may come before the first start of a server
        SqlStore.open(config.url).close()
    with _keys(settings) as keys:
        issued = keys.create(
            name,
            scope,
            expires_in_s=_span("--expires", expires),
            requests_per_minute=per_minute,
            actor=actor or whoami(),
        )
    _print(issued, as_json)


@app.command("list")
@configured("data_dir", "database")
def list_(
    settings: Settings, as_json: Json = False, as_csv: Csv = False, quiet: Quiet = False
) -> None:
    """Every key that there is or was, oldest first.

    Example: weightledger keys list --json
    """
    with _keys(settings) as keys:
        items = [_item(key) for key in keys.all()]
    output.listing(items, _COLUMNS, id_key="name", as_json=as_json, as_csv=as_csv, quiet=quiet)


@app.command()
@configured("data_dir", "database")
def show(settings: Settings, name: Name, as_json: Json = False) -> None:
    """One key, and what was done to it: when, and by whom.

    Example: weightledger keys show trainer
    """
    with _keys(settings) as keys:
        changes = keys.changes(name)
        (key,) = (one for one in keys.all() if one.name == name)
    done = [key_change_item(change) for change in changes]
    output.facts({**_item(key), "changes": done}, as_json=as_json)


@app.command()
@configured("data_dir", "database")
def rotate(
    settings: Settings,
    name: Name,
    overlap: Annotated[
        str, typer.Option(help="How long the old one goes on being taken: 10m, 1d …")
    ] = "0s",
    expires: Annotated[
        str | None,
        typer.Option(help="How long the new one is taken; by default as long as the old one."),
    ] = None,
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Give a key a new secret, and print it; name, scope and limit stay.

    Example: weightledger keys rotate trainer --overlap 1h
    """
    with _keys(settings) as keys:
        issued = keys.rotate(
            name,
            overlap_s=_span("--overlap", overlap) or 0.0,
            expires_in_s=_span("--expires", expires),
            actor=actor or whoami(),
        )
    _print(issued, as_json)


@app.command()
@configured("data_dir", "database")
def revoke(settings: Settings, name: Name, actor: Actor = None, as_json: Json = False) -> None:
    """Let nobody in with a key any more; servers that are running stop within a second.

    Example: weightledger keys revoke trainer
    """
    with _keys(settings) as keys:
        key = keys.revoke(name, actor=actor or whoami())
    output.facts(_item(key), as_json=as_json)


@contextlib.contextmanager
def _keys(settings: Settings) -> Iterator[ApiKeys]:
    """The keys of the ledger, as it is."""
    require_ledger(settings)
    with contextlib.closing(SqlStore.open(settings.update_config().url, upgrade=False)) as store:
        yield store.keys


def _print(issued: Issued, as_json: bool) -> None:
    """The key, and about it: on standard output alone for programs, beside it for people."""
    if as_json:
        output.facts({**_item(issued.key), "key": issued.secret}, as_json=True)
        return
    sys.stdout.write(f"{issued.secret}\n")
    output.note(f"the {issued.key.scope} key of {issued.key.name}; it is not shown again")


def _item(key: ApiKey) -> dict[str, Any]:
    return key_item(key, time.time_ns() // 1000)


def _span(option: str, text: str | None) -> float | None:
    """Seconds; FlagError says what was expected."""
    if text is None:
        return None
    match = _SPAN.fullmatch(text.strip().lower())
    if match is None:
        raise FlagError(f"{option} takes a time such as 90s, 30m, 12h, 7d, got {text!r}")
    return float(int(match[1]) * _SECONDS[match[2]])
