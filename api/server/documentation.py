"""The page about settings, made from the settings."""

from typing import Literal, get_args, get_origin

from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FILE, FILE_VARIABLE, Setting, settings_of

_HEAD = f"""# Configuration

Every setting can be given in four places. A flag wins over the environment, the environment over the file, the file over the default.

- **Flag**: `weightledger serve --port 8080`.
- **Environment**: `WEIGHTLEDGER_PORT=8080`. An empty variable unsets a setting that has no default, and is an error for one that has. A setting within a table is `WEIGHTLEDGER_TABLE__NAME`.
- **File**: `port = 8080` in `{FILE}` in the current folder, or in the file that `--config-file` or `{FILE_VARIABLE}` names. It is [TOML](https://toml.io): numbers and `true`/`false` stand bare, texts in quotes. A name in it that is no setting is an error.

`weightledger config show` prints the settings in force and where each comes from, with secrets masked; `weightledger config list` prints all there are. Commands that read and write take `--data-dir`, `--database`, `--url` and `--api-key`; `serve` takes all but `--url`.

This page is written by `weightledger config list --markdown docs/configuration.md`.

| Setting | Type | Default | |
|---|---|---|---|
"""


def document() -> str:
    """The page, in Markdown."""
    return _HEAD + "".join(f"{_row(one)}\n" for one in settings_of(Settings))


def _row(one: Setting) -> str:
    default = f"`{one.shown_default()}`" if one.shown_default() else "–"
    names = f"`{one.name}`" + (f" `{one.variable}`" if one.flag is None else "")
    secret = " Secret." if one.secret else ""
    return f"| {names} | {_type(one)} | {default} | {one.help.replace('|', '/')}{secret} |"


def _type(one: Setting) -> str:
    if get_origin(one.plain) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(one.plain))
    if get_origin(one.plain) is tuple:
        return "list of texts; `a,b` in the environment"
    return {"int": "integer", "float": "number", "bool": "`true` or `false`", "Path": "path"}.get(
        one.plain.__name__, "text"
    )
