"""The log, as people know it from git."""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from weightledger.api.cli import output
from weightledger.api.cli.moments import moment
from weightledger.api.cli.options import WHERE, Csv, Json, Model, Quiet, check_kinds, configured
from weightledger.api.cli.pager import paged
from weightledger.api.cli.source import reading
from weightledger.api.items import OUTCOMES
from weightledger.api.loglines import STYLES, one_line, short, stat, summary, when
from weightledger.api.plain_text import plain
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger.debug.graph import DrawnEvent, graph
from weightledger.ledger.events import KINDS, ROLLED_BACK, STATE_CHANGING

Item = Mapping[str, Any]

_COLUMNS = ("seq", "recorded_at", "id", "kind", "what", "delta_norm", "actor", "reason")
_ALL = 1 << 40


@configured(*WHERE)
def log(
    settings: Settings,
    model: Model = None,
    parameter: Annotated[str | None, typer.Option(help="Glob over parameter names.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help=f"Kind of event, repeatable: {', '.join(KINDS)}."),
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option("--actor", help="Who wrote it; repeatable.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="A time: 1h, 2d, yesterday, or ISO 8601 (UTC).")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The same; inclusive.")] = None,
    number: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")
    ] = 20,
    text: Annotated[
        str | None,
        typer.Option(
            "--text", "--reason", help="Words of the reason or the actor, in any order and case."
        ),
    ] = None,
    min_norm: Annotated[
        float | None, typer.Option(min=0, help="The least norm of an update's difference.")
    ] = None,
    outcome: Annotated[
        str | None, typer.Option(help="Of updates.", metavar="|".join(OUTCOMES))
    ] = None,
    min_seq: Annotated[int | None, typer.Option(min=0, help="The first event.")] = None,
    max_seq: Annotated[int | None, typer.Option(min=0, help="The last event.")] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            help="A column with this key of the metadata, such as loss; with a value, such as"
            " ticket=OPS-17, only events that have it. Repeatable."
        ),
    ] = None,
    oneline: Annotated[bool, typer.Option("--oneline", help="A line for each event.")] = False,
    draw: Annotated[
        bool, typer.Option("--graph", help="Draw the tree of states: a lane for each branch.")
    ] = False,
    with_stat: Annotated[
        bool, typer.Option("--stat", help="Below each event the tensors it changed, by elements.")
    ] = False,
    following: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Then go on with every new event, until Ctrl-C."),
    ] = False,
    no_pager: Annotated[
        bool, typer.Option("--no-pager", help="Do not page what is longer than the terminal.")
    ] = False,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """Events, newest first.

    HEAD and the versions stand beside the states they name. Refused updates and rollbacks have a
    colour on a terminal, unless NO_COLOR is set; what is longer than the terminal goes through
    $PAGER.

    Example: weightledger log --parameter 'layers.*' --since 1h -n 5
    """
    lines = oneline or draw or with_stat
    if lines and (as_json or as_csv or quiet):
        raise FlagError(
            "--oneline, --graph and --stat are for people: leave out --json, --csv and --quiet",
            param="json",
        )
    check_kinds(kind)
    if outcome not in (None, *OUTCOMES):
        raise FlagError(f"--outcome is {' or '.join(OUTCOMES)}, got {outcome!r}")
    given: dict[str, Any] = {"parameter": parameter, "kind": kind, "actor": by, "text": text}
    given |= {"outcome": outcome, "min_norm": min_norm, "min_seq": min_seq, "max_seq": max_seq}
    given |= {"since": moment("--since", since), "until": moment("--until", until)}
    query = {name: value for name, value in given.items() if value not in (None, [])}
    keys, wanted = _columns(metadata or ())
    query |= wanted
    if following:
        if draw or as_csv:
            raise FlagError("--follow goes on for ever: leave out --graph and --csv", param="json")
        form = "json" if as_json else "id" if quiet else "stat" if with_stat else "line"
        with reading(settings, model) as source, contextlib.suppress(KeyboardInterrupt):
            _follow(source, query, number, form)
        return
    with reading(settings, model) as source:
        events = source.events(query, number)
        marks = _marks(source) if not (as_json or as_csv or quiet) else {}
        rollbacks = _rollbacks(source, events) if draw else []
    items = [{**event, **_summary(event), **_asked(event, keys)} for event in events]
    if as_json or as_csv or quiet:
        output.listing(
            items,
            (*_COLUMNS, *keys),
            id_key="id",
            as_json=as_json,
            as_csv=as_csv,
            quiet=quiet,
        )
        return
    with paged(not no_pager):
        if lines:
            _lines(items, marks, rollbacks if draw else None, with_stat=with_stat)
        else:
            _print(items, keys, marks)


def _follow(source: Any, query: Mapping[str, Any], number: int, form: str) -> None:
    """The last events, oldest first, then every new one."""
    (head,) = source.events({}, 1)
    last = head["seq"]
    most = min(last, query.get("max_seq", last))
    for item in reversed(source.events({**query, "max_seq": most}, number)):
        _tell(item, form)
    for item in source.follow(last):
        seq = item["seq"]
        if query.get("max_seq", seq) < seq:
            return
        # Who knows the filters is asked, so that there is one that decides.
        if not query or source.events({**query, "min_seq": seq, "max_seq": seq}, 1):
            _tell(item, form)


def _tell(item: Item, form: str) -> None:
    """One event on its own, at once."""
    if form == "json":
        output.text(json.dumps(item) + "\n")
    elif form == "id":
        output.text(f"{plain(item['id'])}\n")
    else:
        output.line([(f"{when(item['recorded_at'])} ", "dim"), *one_line(item)])
        for text in stat(item) if form == "stat" else ():
            output.line([(text, "")])
    sys.stdout.flush()


def _columns(metadata: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The keys of KEY and KEY=VALUE, each once, and what the values ask for."""
    parts = [one.partition("=") for one in metadata]
    for (key, _, _), given in zip(parts, metadata, strict=True):
        if not key:
            raise FlagError(f"--metadata takes KEY or KEY=VALUE, got {given!r}", param="metadata")
    wanted = {f"metadata.{key}": value for key, equals, value in parts if equals}
    return list(dict.fromkeys(key for key, _, _ in parts)), wanted


def _summary(event: Item) -> dict[str, Any]:
    return {"what": summary(event), "delta_norm": event["facts"].get("delta_norm")}


def _asked(event: Item, keys: Sequence[str]) -> dict[str, Any]:
    return {key: (event["metadata"] or {}).get(key) for key in keys}


def _marks(source: Any) -> dict[int, list[str]]:
    """What stands beside the state-changing event whose result it names: HEAD, versions."""
    marks: dict[int, list[str]] = {}
    (head,) = source.events({}, 1)
    marks.setdefault(head["state_seq"], []).append("HEAD")
    for one in source.versions():
        marks.setdefault(one["seq"], []).append(short(one["version_id"]))
    return marks


def _rollbacks(source: Any, events: Sequence[Item]) -> list[tuple[int, int]]:
    """Every rollback since the oldest of some events, and the node it led to."""
    if not events:
        return []
    query = {"kind": [ROLLED_BACK], "min_seq": events[-1]["seq"]}
    return [(one["seq"], one["node"]) for one in source.events(query, _ALL)]


def _lines(
    items: Sequence[Item],
    marks: Mapping[int, list[str]],
    rollbacks: Sequence[tuple[int, int]] | None,
    *,
    with_stat: bool,
) -> None:
    """A line for each event, with lanes before it where rollbacks are given, and tensors below."""
    drawn = None if rollbacks is None else graph([_node(one) for one in items], rollbacks)
    for at, item in enumerate(items):
        start, below = "", ""
        if drawn is not None:
            for joins in drawn[at].joins:
                output.line([(joins, "dim")])
            start = drawn[at].start + " "
            below = "".join("|" if mark in "*o.|" else " " for mark in start)
        pieces = one_line(item, marks.get(item["seq"], []))
        output.line([(start, ""), *pieces])
        for text in stat(item) if with_stat else ():
            output.line([(below, ""), (text, "")])


def _node(item: Item) -> DrawnEvent:
    if item["kind"] == ROLLED_BACK:
        return DrawnEvent(item["seq"], "o")
    return DrawnEvent(item["seq"], "*" if item["kind"] in STATE_CHANGING else ".")


def _print(items: Sequence[Item], keys: Sequence[str], marks: Mapping[int, list[str]]) -> None:
    rows = [
        {
            "seq": one["seq"],
            "at (UTC)": when(one["recorded_at"]),
            "id": one["id"],
            "what": _what(one, marks),
            "|Δ|": None if one["delta_norm"] is None else f"{one['delta_norm']:.3g}",
            "actor": one["actor"],
            "reason": one["reason"],
            **{key: one[key] for key in keys},
        }
        for one in items
    ]
    columns = ["seq", "at (UTC)", "id", "what", "|Δ|", "actor", "reason", *keys]
    columns = [c for c in columns if c in ("seq", "id") or any(row[c] is not None for row in rows)]
    output.table(
        rows,
        columns,
        whole={"seq", "at (UTC)", "id", "|Δ|"},
        styles=[STYLES.get(one["kind"], "") for one in items],
        marked="what",
    )


def _what(event: Item, marks: Mapping[int, list[str]]) -> str:
    names = marks.get(event["seq"], [])
    return f"({', '.join(names)}) {event['what']}" if names else str(event["what"])
