"""`weightledger hold list | place | release`."""

from typing import Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.help import App
from weightledger.api.cli.options import WHERE, Actor, Csv, Json, Model, Offline, Quiet, configured
from weightledger.api.cli.source import reading, writer
from weightledger.api.server.settings import Settings

app = App(help="Legal holds: versions that have to be kept.", no_args_is_help=True)

Why = Annotated[str, typer.Option("-m", "--reason", help="Why, such as the case; it is recorded.")]

_COLUMNS = ("id", "version_id", "placed_by", "placed_at", "reason", "released_by", "released_at")


@app.command("list")
@configured(*WHERE)
def list_(
    settings: Settings,
    standing: Annotated[bool, typer.Option("--standing", help="Only those that stand.")] = False,
    model: Model = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """Holds that there are or were, newest first.

    Example: weightledger hold list --standing
    """
    with reading(settings, model) as source:
        items = [one for one in source.holds() if not (standing and one["released_at"])]
    output.listing(items, _COLUMNS, id_key="id", as_json=as_json, as_csv=as_csv, quiet=quiet)


@app.command()
@configured(*WHERE)
def place(
    settings: Settings,
    version_id: Annotated[str, typer.Argument(metavar="VERSION", help="v1, or the whole id.")],
    reason: Why,
    actor: Actor = None,
    offline: Offline = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Keep a version, listed or retired: it is not retired, and gc keeps its state.

    Example: weightledger hold place v1 -m 'case 12'
    """
    with writer(settings, model, actor=actor, offline=offline) as log:
        placed = log.hold(version_id, reason)
    output.facts(placed, as_json=as_json)


@app.command()
@configured(*WHERE)
def release(
    settings: Settings,
    hold_id: Annotated[str, typer.Argument(metavar="HOLD", help="Its id, as `list` has it.")],
    reason: Why,
    actor: Actor = None,
    offline: Offline = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """End one hold; the version may be under others still.

    Example: weightledger hold release hold_0 -m 'case 12 is closed'
    """
    with writer(settings, model, actor=actor, offline=offline) as log:
        released = log.release(hold_id, reason)
    output.facts(released, as_json=as_json)
