"""Options of commands: those of the settings, made from the settings, and those several share."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FILE, FlagError, Setting, load, settings_of
from weightledger.ledger.events import KINDS

Model = Annotated[
    str | None, typer.Option("--model", help="The model's name; not needed when there is one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")]
Reason = Annotated[str | None, typer.Option("--reason", "-m", help="Why; kept with the event.")]
Actor = Annotated[
    str | None,
    typer.Option(
        "--actor",
        help="Who asks, kept with the event; by default you, or over REST the API key's name.",
    ),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Write to the database itself, while no server serves it."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config-file", metavar="FILE", help="The settings file.", show_default=str(FILE)
    ),
]

# Where a command reads and writes.
WHERE = ("data_dir", "database", "url", "api_key")

_SETTINGS_PANEL = "Settings (flags win over environment, file, defaults)"


def check_kinds(kinds: Sequence[str] | None) -> None:
    """FlagError unless these are kinds of events."""
    unknown = sorted(set(kinds or ()) - set(KINDS))
    if unknown:
        raise FlagError(
            f"there is no kind {unknown[0]!r}; kinds are {', '.join(KINDS)}", param="kind"
        )


def configured(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the settings in force as its first argument, and their flags as options.

    `names` are the settings that it has flags for; without any, all of a server's.
    """
    chosen = [
        one
        for one in settings_of(Settings)
        if one.flag and (one.name in names if names else one.metadata["serve"])
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        parameters = own + [_parameter(one) for one in chosen]
        file = inspect.Parameter(
            "config_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile
        )
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            flags = {one.key: given.pop(one.key) for one in chosen}
            settings = load(Settings, flags, file=given.pop("config_file")).settings
            command(settings, **given)

        run.__signature__ = inspect.Signature([*parameters, file])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in [*parameters, file]}
        run.__doc__ = _paragraphs(inspect.cleandoc(command.__doc__ or ""))
        del run.__wrapped__
        return run

    return decorate


def _paragraphs(text: str) -> str:
    """The same words, each paragraph on one line: the terminal's width breaks it."""
    return "\n\n".join(" ".join(part.split("\n")) for part in text.split("\n\n"))


def _parameter(one: Setting) -> inspect.Parameter:
    """A setting as an option; its text is read where the environment's and the file's are."""
    shown: Any = one.shown_default() if one.default is not None else False
    option = typer.Option(
        *((f"{one.flag}/--no-{one.flag[2:]}",) if one.plain is bool and one.flag else (one.flag,)),
        help=one.help,
        show_default=shown,
        metavar=_metavar(one),
        rich_help_panel=_SETTINGS_PANEL,
    )
    kind: Any = bool if one.plain is bool else str
    annotation: Any = Annotated[kind | None, option]
    return inspect.Parameter(
        one.key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _metavar(one: Setting) -> str | None:
    if one.plain is bool:
        return None
    if get_origin(one.plain) is Literal:
        return "|".join(get_args(one.plain))
    if get_origin(one.plain) is tuple:
        return "A,B"
    names = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
    if "URL" in one.help:
        return "URL"
    return names.get(one.plain, "TEXT")
