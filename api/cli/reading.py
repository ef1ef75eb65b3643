"""Commands that only read: status, show."""

from typing import Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.options import WHERE, Json, Model, configured
from weightledger.api.cli.source import reading
from weightledger.api.server.settings import Settings


@configured(*WHERE)
def status(settings: Settings, model: Model = None, as_json: Json = False) -> None:
    """Where a model stands.

    Example: weightledger status --url http://127.0.0.1:2242
    """
    with reading(settings, model) as source:
        facts = source.status()
    if not as_json and facts["current_version"] and facts["updates_since_version"]:
        facts["current_version"] += f" +{facts['updates_since_version']}"
    output.facts(facts, as_json=as_json)


@configured(*WHERE)
def show(
    settings: Settings,
    event_id: Annotated[
        str, typer.Argument(metavar="EVENT", help="update_3, v1, 12, head, a digest's start …")
    ],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """One event, whole.

    Example: weightledger show head
    """
    with reading(settings, model) as source:
        item = source.event(event_id)
    output.facts(item, as_json=as_json)
