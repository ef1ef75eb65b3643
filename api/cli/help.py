"""How help looks: plain lines, with every name whole.

A long flag has a line of its own, so that no width of a terminal cuts it or breaks it in two.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer import _click
from typer.core import TyperCommand, TyperGroup

_WIDEST = 100
"""Columns that help takes of a terminal at most."""

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": _WIDEST}

F = TypeVar("F", bound=Callable[..., Any])


class PanelledCommand(TyperCommand):
    """A command whose options stand below the heading of their panel."""

    def format_options(self, ctx: _click.Context, formatter: _click.HelpFormatter) -> None:
        """Arguments, the command's own options, then those with a panel of their own."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is None:
                continue
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            heading = getattr(parameter, "rich_help_panel", None) or kind
            sections.setdefault(heading, []).append(row)
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class SummarisedGroup(TyperGroup):
    """A group that says of each command the whole first line of its help."""

    def format_commands(self, ctx: _click.Context, formatter: _click.HelpFormatter) -> None:
        """The commands with what they are for."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, (command.help or "").split("\n")[0]))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


class App(typer.Typer):
    """Commands and groups with such help."""

    def __init__(self, *, cls: type[SummarisedGroup] = SummarisedGroup, **options: Any) -> None:
        super().__init__(
            cls=cls,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            context_settings=CONTEXT,
            **options,
        )

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Register a function as a command, as typer does; `cls` is a kind of Command."""
        return super().command(name, **{"cls": PanelledCommand, **options})
