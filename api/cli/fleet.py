"""`weightledger fleet status | served`."""

from typing import Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.help import App
from weightledger.api.cli.options import WHERE, Csv, Json, Model, Quiet, configured
from weightledger.api.cli.source import reading
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger.history.positions import parse_time

app = App(help="Replicas: how each stands, and what it served.", no_args_is_help=True)

_COLUMNS = ("replica", "state", "seq", "digest", "lag_events", "target", "url", "seen_at", "reason")


@app.command()
@configured(*WHERE)
def status(
    settings: Settings,
    model: Model = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """Every replica as it was last heard of.

    Example: weightledger fleet status
    """
    with reading(settings, model) as source:
        items = source.replicas()
    if not (as_json or as_csv or quiet):
        items = [{**one, "digest": str(one["digest"] or "")[:12]} for one in items]
    output.listing(items, _COLUMNS, id_key="replica", as_json=as_json, as_csv=as_csv, quiet=quiet)


@app.command()
@configured(*WHERE)
def served(
    settings: Settings,
    replica: Annotated[str, typer.Argument(help="The replica's name.")],
    at: Annotated[str, typer.Option("--at", metavar="TIME", help="A UTC time.")],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """What a replica served at a time: the seq and the digest of the state. Exit status 1 where it
    is not known.

    Example: weightledger fleet served gpu-7 --at 2026-11-22T10:00:00Z
    """
    if parse_time(at) is None:
        raise FlagError(
            f"--at takes a UTC time such as 2026-11-22T10:00:00Z, got {at!r}", param="at"
        )
    with reading(settings, model) as source:
        item = source.served(replica, at)
    output.facts(item, as_json=as_json)
    if not item["known"]:
        raise typer.Exit(1)
