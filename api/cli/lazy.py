"""Commands that are imported when they are called: `--help` waits for none of them.

A command's one line of help stands in the table beside its name, so that listing commands imports
nothing; a test holds that it is the first line of the command's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer import _click
from typer.core import TyperCommand
from typer.main import get_command

from weightledger.api.cli.help import App, SummarisedGroup


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is: `module:name` below `weightledger.api.cli`, a function or a Typer app."""

    place: str
    help: str


class _Later(TyperCommand):
    """Stands for a command until it is called or asked for its help."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.help)
        self._entry = entry

    def load(self) -> _click.Command:
        """The command itself."""
        module, attribute = self._entry.place.split(":")
        target = getattr(import_module(f"weightledger.api.cli.{module}"), attribute)
        if not isinstance(target, typer.Typer):
            single = App(add_completion=False)
            single.command(self.name)(target)
            target = single
        target._add_completion = False
        command = get_command(target)
        command.name = self.name
        return command

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: _click.Context | None = None,
        **extra: Any,
    ) -> _click.Context:
        return self.load().make_context(info_name, args, parent, **extra)


def group(entries: Mapping[str, Entry]) -> type[SummarisedGroup]:
    """The class of a group that has these commands."""

    class Lazy(SummarisedGroup):
        def list_commands(self, ctx: _click.Context) -> list[str]:
            return list(entries)

        def get_command(self, ctx: _click.Context, cmd_name: str) -> _click.Command | None:
            return _Later(cmd_name, entries[cmd_name]) if cmd_name in entries else None

        def __init__(self, **attrs: Any) -> None:
            super().__init__(**attrs)
            # What is suggested for a mistyped name is looked for here.
            self.commands = {name: _Later(name, entry) for name, entry in entries.items()}

    return Lazy
