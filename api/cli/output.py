"""How results are printed: a table for people, JSON, CSV or bare ids for programs.

Every text goes through `text.plain` or `text.cell`, or is JSON, which escapes by itself.
"""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightledger.api.plain_text import cell, plain
from weightledger.api.server.sources import FlagError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_WIDE = 200  # where there is no terminal, lines are not cut


def listing(
    items: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    id_key: str,
    as_json: bool,
    as_csv: bool,
    quiet: bool,
) -> None:
    """Print items; `columns` are the keys shown in a table or in CSV."""
    if as_json + as_csv + quiet > 1:
        raise FlagError("of --json, --csv and --quiet only one can be had", param="json")
    if as_json:
        sys.stdout.write(json.dumps(list(items), indent=2) + "\n")
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows([_for_csv(item[column]) for column in columns] for item in items)
    elif quiet:
        sys.stdout.writelines(f"{plain(str(item[id_key]))}\n" for item in items)
    else:
        table([{**item, **_short_times(item)} for item in items], columns, whole={id_key})


def table(
    items: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    whole: set[str],
    styles: Sequence[str] = (),
    marked: str | None = None,
) -> None:
    """Print items as a table; columns in `whole` are never cut or wrapped. `styles` by row.

    What stands in brackets at the start of the column `marked` has a colour of its own. On a
    terminal that is too narrow for a table each item's fields stand below each other.
    """
    from rich.table import Table
    from rich.text import Text

    from weightledger.api.cli import grid

    rows = [[Text(_cell(item[column])) for column in columns] for item in items]
    if marked is not None:
        for row in rows:
            row[columns.index(marked)].highlight_regex(r"^\([^)]*\)", "bold cyan")
    texts = [[name, *(row[at].plain for row in rows)] for at, name in enumerate(columns)]
    keeps = [column in whole for column in columns]
    layout = grid.fitting(texts, keeps, console().width)
    if layout is None and sys.stdout.isatty():
        _print_one_by_one(rows, columns, styles)
        return
    widths, gap = layout or (grid.least(texts, keeps), 2)
    shown = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for name, width, keep in zip(columns, widths, keeps, strict=True):
        shown.add_column(name, width=width, no_wrap=keep, overflow="fold")
    for number, row in enumerate(rows):
        shown.add_row(*row, style=styles[number] if styles else "")
    console(sum(widths) + gap * len(widths)).print(shown)


def _print_one_by_one(
    rows: Sequence[Sequence["Text"]], columns: Sequence[str], styles: Sequence[str]
) -> None:
    """Each item as its fields, a line each; the terminal goes on below what is longer."""
    from rich.text import Text

    if not rows:
        line([("  ".join(columns), "bold")])
    width = max(map(len, columns))
    for number, row in enumerate(rows):
        if number:
            line([])
        for name, value in zip(columns, row, strict=True):
            named = Text.assemble((f"{name:<{width}}  ", "bold"), value)
            console().print(named, style=styles[number] if styles else "", soft_wrap=True)


def _short_times(item: Mapping[str, Any]) -> dict[str, str]:
    """Times to the second: tables are read by people."""
    return {
        name: f"{value[:10]} {value[11:19]}"
        for name, value in item.items()
        if name == "recorded_at" and isinstance(value, str)
    }


def facts(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print one thing's fields, a line each, or as JSON; what is within one stands below it."""
    if as_json:
        sys.stdout.write(json.dumps(dict(values), indent=2) + "\n")
        return
    _print_facts(values, "")


def _print_facts(values: Mapping[str, Any], indent: str) -> None:
    width = max((len(key) for key in values), default=0)
    for key, value in values.items():
        name = plain(key)
        if isinstance(value, Mapping) and value:
            sys.stdout.write(f"{indent}{name}\n")
            _print_facts(value, indent + "  ")
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            sys.stdout.write(f"{indent}{name}\n")
            for one in value:
                sys.stdout.write(f"{indent}  - {_on_one_line(one)}\n")
        else:
            sys.stdout.write(f"{indent}{name:<{width}}  {_cell(value)}\n")


def _on_one_line(values: Mapping[str, Any]) -> str:
    named = sorted(values, key=lambda key: key not in ("name", "parameter"))  # whose they are
    return ", ".join(f"{plain(key)} {_within(values[key])}" for key in named)


def _within(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return f"({_on_one_line(value)})"
    return _cell(value)


def console(wanted: int = 0) -> "Console":
    """Standard output; wide when it is not a terminal, so that lines are not cut."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else max(_WIDE, wanted)
    return Console(width=width, highlight=False, markup=False)


def line(pieces: Sequence[tuple[str, str]]) -> None:
    """Print one line of texts that are safe already, each with its style; it is never wrapped."""
    from rich.text import Text

    whole = Text.assemble(*pieces)
    whole.rstrip()
    console().print(whole, soft_wrap=True)


def text(lines: str) -> None:
    """Print lines that are ours, or made safe already."""
    sys.stdout.write(lines)


def note(message: str) -> None:
    """A remark for people, on stderr."""
    sys.stderr.write(f"{plain(message)}\n")


def _cell(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and not any(isinstance(one, dict | list) for one in value):
        return ", ".join(_cell(one) for one in value)
    if isinstance(value, dict | list):
        return json.dumps(value)
    return plain(str(value))


def _for_csv(value: Any) -> Any:
    if isinstance(value, str):
        return cell(value)
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, dict | list) else value
