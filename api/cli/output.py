"""How results are printed: a table for people, JSON, CSV or bare ids for programs."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


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
    if as_json:
        sys.stdout.write(json.dumps(list(items), indent=2) + "\n")
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows([item[column] for column in columns] for item in items)
    elif quiet:
        sys.stdout.writelines(f"{item[id_key]}\n" for item in items)
    else:
        table = Table(*columns, box=None, pad_edge=False)
        for item in items:
            table.add_row(*(_cell(item[column]) for column in columns))
        console().print(table)


def facts(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print one thing's fields, a line each, or as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(dict(values), indent=2) + "\n")
        return
    width = max(len(key) for key in values)
    for key, value in values.items():
        sys.stdout.write(f"{key:<{width}}  {_cell(value)}\n")


def console() -> Console:
    """Standard output; wide when it is not a terminal, so that lines are not cut."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value)
