"""`weightledger activity`: counts of events."""

from collections import Counter
from typing import Annotated, Any

import typer

from weightledger.api.cli import output
from weightledger.api.cli.moments import moment
from weightledger.api.cli.options import WHERE, Csv, Json, Model, Quiet, check_kinds, configured
from weightledger.api.cli.source import reading
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError

_BY = ("day", "kind", "outcome", "actor")


@configured(*WHERE)
def activity(
    settings: Settings,
    model: Model = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help=f"What to count by, repeatable: {', '.join(_BY)}; all of it by default."),
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Kind of event, repeatable.")] = None,
    actor: Annotated[
        list[str] | None, typer.Option("--actor", help="Who wrote it; repeatable.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="A time: 1h, 2d, yesterday, or ISO 8601 (UTC).")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The same; inclusive.")] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """How many events there were, by whom and of what kind.

    Example: weightledger activity --since 7d --by actor --by outcome
    """
    chosen = tuple(one for one in _BY if one in by) if by else _BY
    unknown = sorted(set(by or ()) - set(_BY))
    if unknown:
        raise FlagError(f"--by is {', '.join(_BY)}, got {unknown[0]!r}")
    check_kinds(kind)
    asked: dict[str, Any] = {"kind": kind, "actor": actor}
    asked |= {"since": moment("--since", since), "until": moment("--until", until)}
    with reading(settings, model) as source:
        counted = source.activity({name: value for name, value in asked.items() if value})
    totals: Counter[tuple[str | None, ...]] = Counter()
    for item in counted:
        totals[tuple(item[name] for name in chosen)] += item["events"]
    items = [
        {**dict(zip(chosen, values, strict=True)), "events": events}
        for values, events in totals.items()
    ]
    output.listing(
        items,
        (*chosen, "events"),
        id_key=chosen[0],
        as_json=as_json,
        as_csv=as_csv,
        quiet=quiet,
    )
