"""Commands that only read: status, log, show, replay."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from weightledger.api.cli import output
from weightledger.api.cli.files import replacing
from weightledger.api.cli.moments import moment
from weightledger.api.cli.options import (
    WHERE,
    Csv,
    Json,
    Model,
    Quiet,
    check_kinds,
    configured,
)
from weightledger.api.cli.source import reading
from weightledger.api.items import OUTCOMES
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger.events import KINDS, ROLLED_BACK, UPDATE_REJECTED

Item = Mapping[str, Any]

_COLUMNS = ("seq", "recorded_at", "id", "kind", "what", "delta_norm", "actor", "reason")
_TIMED = re.compile(r"((?:v|update_)[0-9]+)_[0-9]+")
_STYLES = {UPDATE_REJECTED: "red", ROLLED_BACK: "yellow"}


@configured(*WHERE)
def status(settings: Settings, model: Model = None, as_json: Json = False) -> None:
    """Where a model stands.

    Example: weightledger status --url http://127.0.0.1:2242
    """
    with reading(settings, model) as source:
        facts = source.status()
    if not as_json and facts["current_version"] and facts["updates_since_version"]:
        facts["current_version"] += f" +{facts['updates_since_version']}"
    output.facts(facts, as_json=as_json)


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
        str | None, typer.Option(help="Words of the reason or the actor, in any order and case.")
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
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """Events, newest first.

    HEAD and the versions stand beside the states they name. Refused updates and rollbacks have a
    colour on a terminal, unless NO_COLOR is set.

    Example: weightledger log --parameter 'layers.*' --since 1h -n 5
    """
    check_kinds(kind)
    if outcome not in (None, *OUTCOMES):
        raise FlagError(f"--outcome is {' or '.join(OUTCOMES)}, got {outcome!r}")
    given: dict[str, Any] = {"parameter": parameter, "kind": kind, "actor": by, "text": text}
    given |= {"outcome": outcome, "min_norm": min_norm, "min_seq": min_seq, "max_seq": max_seq}
    given |= {"since": moment("--since", since), "until": moment("--until", until)}
    query = {name: value for name, value in given.items() if value not in (None, [])}
    keys, wanted = _columns(metadata or ())
    query |= wanted
    with reading(settings, model) as source:
        events = source.events(query, number)
        marks = _marks(source) if not (as_json or as_csv or quiet) else {}
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
    _print(items, keys, marks)


@configured(*WHERE)
def show(
    settings: Settings,
    event_id: Annotated[
        str, typer.Argument(metavar="EVENT", help="update_3, v1, 12, head, a digest's start …")
    ],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """One event, whole.

    Example: weightledger show head
    """
    with reading(settings, model) as source:
        item = source.event(event_id)
    output.facts(item, as_json=as_json)


@configured(*WHERE)
def replay(
    settings: Settings,
    out: Annotated[Path, typer.Option("-o", "--out", help="The safetensors file to write.")],
    to: Annotated[
        str, typer.Option(metavar="POSITION", help="v1, update_3, 12, head~1, a time …")
    ] = "head",
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Rebuild a state from the log and write it to a file.

    Every digest on the way is verified. The file is safetensors; its metadata say which state it
    is.

    Example: weightledger replay --to v1 -o v1.safetensors
    """
    with reading(settings, model) as source, replacing(out) as partial:
        facts = source.save(to, partial)
    output.facts(
        {**facts, "position": to, "bytes": out.stat().st_size, "file": str(out)}, as_json=as_json
    )


def _summary(event: Item) -> dict[str, Any]:
    return {"what": summary(event), "delta_norm": event["facts"].get("delta_norm")}


def summary(event: Item) -> str:
    """What an event did, in a few words."""
    facts, kind = event["facts"], event["kind"]
    if "operation" in facts:
        parts = [facts["operation"], facts.get("parameter", facts.get("adapter", ""))]
        if "learning_rate" in facts:
            parts.append(f"lr {facts['learning_rate']}")
        if kind == UPDATE_REJECTED:
            return "refused: " + " ".join(part for part in parts if part)
        parts.append(f"{sum(one['changed'] for one in facts.get('tensors', ()))} changed")
        return " ".join(part for part in parts if part)
    if "to" in facts:
        cause = "" if facts["cause"] == "manual" else f" ({facts['cause']})"
        return f"rolled back to {short(facts['to'])}{cause}"
    said = facts.get("description") or short(str(facts.get("version_id", "")))
    words = str(kind).replace("_", " ")
    return f"{words}: {said}" if said else words


def short(name: str) -> str:
    """A name without its time: `v1`, `update_3`."""
    return _TIMED.sub(r"\1", name)


def _columns(metadata: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The keys of KEY and KEY=VALUE, each once, and what the values ask for."""
    parts = [one.partition("=") for one in metadata]
    wanted = {f"metadata.{key}": value for key, equals, value in parts if equals}
    return list(dict.fromkeys(key for key, _, _ in parts)), wanted


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


def _print(items: Sequence[Item], keys: Sequence[str], marks: Mapping[int, list[str]]) -> None:
    rows = [
        {
            "seq": one["seq"],
            "at (UTC)": _when(one["recorded_at"]),
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
        styles=[_STYLES.get(one["kind"], "") for one in items],
        marked="what",
    )


def _what(event: Item, marks: Mapping[int, list[str]]) -> str:
    names = marks.get(event["seq"], [])
    return f"({', '.join(names)}) {event['what']}" if names else str(event["what"])


def _when(iso: str) -> str:
    """A time as people read it, in UTC: what it shares with now is left out."""
    at, now = datetime.fromisoformat(iso), datetime.now(UTC)
    if at.date() == now.date():
        return at.strftime("%H:%M:%S")
    return at.strftime("%m-%d %H:%M" if at.year == now.year else "%Y-%m-%d")
