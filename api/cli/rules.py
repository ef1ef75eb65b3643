"""`weightledger rules list | show`."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from weightledger import PluginError
from weightledger.api.cli import output
from weightledger.api.cli.help import App
from weightledger.api.cli.options import Csv, Json, Quiet
from weightledger.rules import describe, rule_ids

app = App(help="The learning rules there are.", no_args_is_help=True)

_COLUMNS = ("id", "version", "parameter", "summary")


@app.command("list")
def list_(as_json: Json = False, as_csv: Csv = False, quiet: Quiet = False) -> None:
    """All rules, those of installed packages last; those that cannot be loaded say why.

    Example: weightledger rules list -q
    """
    ids = rule_ids()
    items = [{"id": rule_id} for rule_id in ids] if quiet else [_listed(rule_id) for rule_id in ids]
    output.listing(items, _COLUMNS, id_key="id", as_json=as_json, as_csv=as_csv, quiet=quiet)


@app.command()
def show(
    rule_id: Annotated[str, typer.Argument(help="The rule's id.")], as_json: Json = False
) -> None:
    """One rule: its config, activities, state, and where it comes from.

    Example: weightledger rules show oja
    """
    output.facts(asdict(describe(rule_id)), as_json=as_json)


def _listed(rule_id: str) -> dict[str, Any]:
    try:
        return {**asdict(describe(rule_id)), "unavailable": None}
    except PluginError as error:
        known = {"id": rule_id, "summary": f"unavailable: {error}", "unavailable": str(error)}
        return {**dict.fromkeys(_COLUMNS), **known}
