"""`weightledger config show | list`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from weightledger.api.cli import output
from weightledger.api.cli.help import App
from weightledger.api.cli.options import ConfigFile, Csv, Json, Quiet
from weightledger.api.server.documentation import document
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import load, settings_of, shown, strangers
from weightledger.ledger.secrets import HIDDEN, mask

app = App(help="The settings in force, and all there are.", no_args_is_help=True)


@app.command()
def show(
    config_file: ConfigFile = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """The settings in force, and where each comes from; secrets are masked.

    Example: WEIGHTLEDGER_PORT=8080 weightledger config show
    """
    loaded = load(Settings, {}, file=config_file)
    items: list[dict[str, Any]] = []
    for one in settings_of(Settings):
        value: Any = loaded.settings
        for name in one.path:
            value = getattr(value, name)
        text = shown(value)
        if text:
            text = HIDDEN if one.secret else mask(text)
        items.append({"name": one.name, "value": text, "from": loaded.origins[one.name]})
    output.listing(
        items, ("name", "value", "from"), id_key="name", as_json=as_json, as_csv=as_csv, quiet=quiet
    )
    for name in strangers(Settings, os.environ):
        typer.echo(f"{name} is set in the environment and is no setting", err=True)


@app.command("list")
def list_(
    markdown: Annotated[
        Path | None, typer.Option(help="Write the page of the documentation to this file.")
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """Every setting there is: its flag, its variable, its default.

    Example: weightledger config list --markdown docs/configuration.md
    """
    if markdown is not None:
        markdown.write_text(document())
        return
    items = [
        {
            "name": one.name,
            "flag": one.flag,
            "variable": one.variable,
            "default": one.shown_default(),
            "help": one.help,
        }
        for one in settings_of(Settings)
    ]
    columns = ("name", "variable", "default", "help")
    output.listing(items, columns, id_key="name", as_json=as_json, as_csv=as_csv, quiet=quiet)
