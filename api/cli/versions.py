"""`weightledger version create | list | show | pin | unpin | retire`."""

from typing import Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.help import App
from weightledger.api.cli.options import (
    WHERE,
    Actor,
    Csv,
    Json,
    Model,
    Offline,
    Quiet,
    Reason,
    configured,
)
from weightledger.api.cli.source import reading, writer
from weightledger.api.server.settings import Settings

app = App(help="Name states, and list the names.", no_args_is_help=True)

VersionId = Annotated[str, typer.Argument(metavar="VERSION", help="v1, or the whole id.")]

_COLUMNS = ("version_id", "recorded_at", "is_active", "pinned", "seq", "description")


@app.command()
@configured(*WHERE)
def create(
    settings: Settings,
    description: Annotated[str, typer.Argument(help="1 to 500 characters.")],
    reason: Reason = None,
    actor: Actor = None,
    offline: Offline = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Name the current state.

    Example: weightledger version create 'before the holidays'
    """
    with writer(settings, model, reason=reason, actor=actor, offline=offline) as log:
        version_id = log.create_version(description)
    output.facts({"version_id": version_id}, as_json=as_json)


@app.command("list")
@configured(*WHERE)
def list_(
    settings: Settings,
    model: Model = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """Versions, newest first.

    Example: weightledger version list --csv
    """
    with reading(settings, model) as source:
        items = source.versions()
    output.listing(
        items, _COLUMNS, id_key="version_id", as_json=as_json, as_csv=as_csv, quiet=quiet
    )


@app.command()
@configured(*WHERE)
def show(
    settings: Settings, version_id: VersionId, model: Model = None, as_json: Json = False
) -> None:
    """One listed version.

    Example: weightledger version show v1
    """
    with reading(settings, model) as source:
        output.facts(source.version(version_id), as_json=as_json)


@app.command()
@configured(*WHERE)
def pin(
    settings: Settings,
    version_id: VersionId,
    reason: Reason = None,
    actor: Actor = None,
    offline: Offline = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Keep a version for ever: it is never retired, and gc keeps its state.

    Example: weightledger version pin v1 -m 'the audited one'
    """
    _set_pin(settings, version_id, True, reason, actor, offline, model, as_json)


@app.command()
@configured(*WHERE)
def unpin(
    settings: Settings,
    version_id: VersionId,
    reason: Reason = None,
    actor: Actor = None,
    offline: Offline = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Let a version be retired again.

    Example: weightledger version unpin v1
    """
    _set_pin(settings, version_id, False, reason, actor, offline, model, as_json)


@app.command()
@configured(*WHERE)
def retire(
    settings: Settings,
    version_id: VersionId,
    reason: Reason = None,
    actor: Actor = None,
    offline: Offline = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Take a version off the list: gc may drop what only it needs, its events stay.

    The active version, pinned ones and those under legal hold are not retired.

    Example: weightledger version retire v1 -m 'superseded'
    """
    with writer(settings, model, reason=reason, actor=actor, offline=offline) as log:
        log.retire(version_id)
    output.facts({"version_id": version_id, "retired": True}, as_json=as_json)


def _set_pin(
    settings: Settings,
    version_id: str,
    pinned: bool,
    reason: str | None,
    actor: str | None,
    offline: bool,
    model: str | None,
    as_json: bool,
) -> None:
    with writer(settings, model, reason=reason, actor=actor, offline=offline) as log:
        log.pin(version_id, pinned)
    output.facts({"version_id": version_id, "pinned": pinned}, as_json=as_json)
