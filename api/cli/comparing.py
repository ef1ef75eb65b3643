"""What differs between two states, and who touched a parameter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from weightledger.api.cli import output
from weightledger.api.cli.files import replacing
from weightledger.api.cli.local import Local
from weightledger.api.cli.options import WHERE, Csv, Json, Model, configured
from weightledger.api.cli.parallel import SHARED, for_states, sharing
from weightledger.api.cli.source import reading
from weightledger.api.loglines import when
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.api.tables import blame_rows, csv_text, diff_rows

Item = Mapping[str, Any]

By = Annotated[
    Literal["tensor", "layer", "module"], typer.Option(help="What a row of the table is.")
]
Svg = Annotated[
    Path | None, typer.Option("--svg", metavar="FILE", help="Write a picture to this file too.")
]

_SHORT = {  # what a table for people shows, and what it calls it
    "name": "name",
    "kind": "",
    "changed": "changed",
    "share": "share",
    "largest_change": "max |Δ|",
    "mean_change": "mean |Δ|",
    "relative_norm": "‖Δ‖ ÷ ‖w‖",
    "cosine": "cosine",
    "effective_rank": "eff. rank",
    "first_index": "first at",
    "became_not_finite": "became NaN or inf",
    "id": "id",
    "layer": "layer",
}


@configured(*WHERE, *SHARED)
def diff(
    settings: Settings,
    before: Annotated[str, typer.Argument(metavar="A", help="v1, update_3, 12, head~2, a time …")],
    after: Annotated[str, typer.Argument(metavar="B", help="The same.")] = "head",
    model: Model = None,
    by: By = "tensor",
    number: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="Rows of the table, what moved most first.")
    ] = 20,
    each: Annotated[
        bool, typer.Option("--each", help="What each update from A to B did, by layer.")
    ] = False,
    columns: Annotated[
        int, typer.Option(min=1, help="With --each: columns, at most; updates share them.")
    ] = 60,
    ranks: Annotated[
        Literal["auto", "all", "none"],
        typer.Option(help="Effective ranks of matrices: of small changes, of all, or of none."),
    ] = "auto",
    svg: Svg = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """What differs between two states.

    Tensors that are the same are known by their digests and not read. What moved farthest comes
    first; a number that is not defined is a dash.

    Example: weightledger diff v1 head --by layer --svg what-changed.svg
    """
    if as_json and as_csv:
        raise FlagError("of --json and --csv only one can be had", param="json")
    query: dict[str, Any] = {"from": before, "to": after}
    query |= {"each": True, "columns": columns} if each else {"ranks": ranks}
    with sharing(settings, for_states) as executor, reading(settings, model) as source:
        found = source.diff(query, executor) if isinstance(source, Local) else source.diff(query)
    if svg is not None:
        from weightledger.ledger.debug.drawn import diff_picture

        with replacing(svg) as partial:
            partial.write_text(diff_picture(found))
    names, rows = diff_rows(found, by)
    if as_json:
        output.facts(found, as_json=True)
    elif as_csv:
        output.text(csv_text(names, rows))
    else:
        _print(found, names, rows, number)


@configured(*WHERE)
def blame(
    settings: Settings,
    parameter: Annotated[str, typer.Argument(metavar="PARAM", help="A parameter's name.")],
    index: Annotated[
        str | None,
        typer.Argument(metavar="INDEX", help="One element, such as 3,7, or 31 counted through."),
    ] = None,
    model: Model = None,
    number: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=100, help="Touches, newest first.")
    ] = 20,
    max_seq: Annotated[int | None, typer.Option(min=0, help="The last event to look at.")] = None,
    svg: Svg = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Who touched a parameter, and what each did to it.

    Of a whole parameter its norm before and after, of one element its value. Events that a rollback
    took out of the live state are listed too, with its name.

    Example: weightledger blame 2.bias 3 -n 5
    """
    if as_json and as_csv:
        raise FlagError("of --json and --csv only one can be had", param="json")
    query = {"parameter": parameter, "index": index, "limit": number, "max_seq": max_seq}
    with reading(settings, model) as source:
        found = source.blame(query)
    if svg is not None:
        from weightledger.ledger.debug.drawn import blame_picture

        with replacing(svg) as partial:
            partial.write_text(blame_picture(found))
    if as_json:
        output.facts(found, as_json=True)
    elif as_csv:
        output.text(csv_text(*blame_rows(found)))
    else:
        _print_blame(found)


def _print_blame(found: Item) -> None:
    values = ("norm_before", "norm_after") if found["index"] is None else ("before", "after")
    rows = [
        {
            "seq": one["seq"],
            "at (UTC)": when(one["recorded_at"]),
            "id": one["id"],
            "before": _told(one[values[0]], one["known"]),
            "after": _told(one[values[1]], one["known"]),
            "changed": f"{one['changed']:,}",
            "live": "yes" if one["live"] else f"no: {one['undone_by']}",
            "how": " ".join(part for part in (one["operation"], one["rule"]) if part),
            "actor": one["actor"],
            "reason": one["reason"],
        }
        for one in found["touches"]
    ]
    if not rows:
        output.text(f"none of the {found['looked_at']} touches looked at changed it\n")
    else:
        heads = [head for head in rows[0] if any(row[head] is not None for row in rows)]
        output.table(rows, heads, whole=set(heads) - {"how", "reason", "live"})
    if found["next_seq"] is not None:
        output.text(f"older ones: --max-seq {found['next_seq']}\n")


def _told(value: Any, known: bool) -> str:
    if not known:
        return "pruned"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)


def _print(found: Item, names: Sequence[str], rows: Sequence[Item], number: int) -> None:
    if found["object"] == "diff.each":
        rows = sorted(rows, key=lambda row: -_size(row["relative_norm"]))
        output.text(f"{len(found['columns'])} columns, {len(found['layers'])} layers touched\n")
    else:
        output.text(_headline(found))
    if not rows:
        return
    chosen = [name for name in _SHORT if name in names]
    shown = [{_SHORT[name] or " ": _shown(name, row[name]) for name in chosen} for row in rows]
    heads = [_SHORT[name] or " " for name in chosen]
    heads = [head for head in heads if any(row[head] not in (None, "") for row in shown)]
    output.table(shown[:number], heads, whole=set(heads) - {"name"})
    if len(rows) > number:
        output.text(f"and {len(rows) - number} more: -n {len(rows)} shows all\n")


def _headline(found: Item) -> str:
    before, after = found["from"], found["to"]
    if before["digest"] == after["digest"]:
        return f"seq {before['seq']} and seq {after['seq']} are the same state\n"
    return (
        f"seq {before['seq']} → seq {after['seq']}: {found['tensors_changed']} of "
        f"{found['tensors']} tensors differ, {found['changed']:,} of {found['elements']:,} "
        f"elements ({found['share']:.3%})\n"
    )


def _shown(name: str, value: Any) -> str | None:
    if value is None or (name == "kind" and value == "changed"):
        return None if name != "kind" else ""
    if name == "share":
        return f"{value:.2%}"
    if name == "became_not_finite":
        return f"{value:,}" if value else None
    if name == "cosine":
        return f"{value:.6f}"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _size(value: Any) -> float:
    return float("inf") if value == "new" else float(value)
