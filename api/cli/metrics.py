"""`weightledger metrics`, `metrics drift` and `metrics push`."""

import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from weightledger.api.cli import output
from weightledger.api.cli.help import App
from weightledger.api.cli.local import opened
from weightledger.api.cli.moments import moment
from weightledger.api.cli.options import WHERE, Csv, Json, Model, Offline, Quiet, configured
from weightledger.api.cli.source import reading, writing
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.metrics import METRICS, is_known
from weightledger.ledger.monitoring.pushing import MOST_SAMPLES, push
from weightledger.ledger.monitoring.reading import WAYS, By
from weightledger.ledger.monitoring.samples import SOURCES
from weightledger.ledger.monitoring.stored import StoredMetrics

app = App(no_args_is_help=False, invoke_without_command=True)

_COLUMNS = (
    *("start", "metric", "source", "first_seq", "last_seq", "count"),
    *("mean", "stddev", "min", "p50", "p90", "p99", "max", "unit"),
)
_DRIFT = ("metric", "detector", "values", "usual", "recent", "drifts", "last_at")
_NUMBERS = ("mean", "stddev", "min", "p50", "p90", "p99", "max")
_ASSIGNED = re.compile(r"([^=]+)=(.+)")


@app.callback()
@configured(*WHERE)
def metrics(
    settings: Settings,
    ctx: typer.Context,
    model: Model = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help=f"Repeatable: {', '.join(METRICS)}, custom.NAME."),
    ] = None,
    measured_by: Annotated[
        list[str] | None, typer.Option("--source", help=f"Repeatable: {', '.join(SOURCES)}.")
    ] = None,
    replica: Annotated[
        list[str] | None, typer.Option(help="Repeatable: replicas that served.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="time, seq or all: a line for each ten seconds, state, or metric.")
    ] = "seq",
    since: Annotated[
        str | None, typer.Option(help="A time: 1h, 2d, yesterday, or ISO 8601 (UTC).")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The same.")] = None,
    min_seq: Annotated[int | None, typer.Option(min=0, help="States from this seq on.")] = None,
    max_seq: Annotated[int | None, typer.Option(min=0, help="States up to this seq.")] = None,
    number: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")
    ] = 20,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """What was measured of a model, newest first.

    Without a server what is written is read; the last ten seconds of one that runs are not.

    Example: weightledger metrics --metric latency_ms --since 1h
    """
    if ctx.invoked_subcommand is not None:
        return
    for name, values, known in (("metric", metric, METRICS), ("source", measured_by, SOURCES)):
        for value in values or ():
            if value not in known and not (name == "metric" and is_known(value)):
                raise FlagError(
                    f"there is no {name} {value!r}; known are {', '.join(known)}", param=name
                )
    if by not in WAYS:
        raise FlagError(f"--by takes {', '.join(WAYS)}, got {by!r}", param="by")
    way: By = by
    given: dict[str, Any] = {
        "metric": metric,
        "source": measured_by,
        "replica": replica,
        "min_seq": min_seq,
        "max_seq": max_seq,
    }
    given |= {"since": moment("--since", since), "until": moment("--until", until)}
    query = {name: value for name, value in given.items() if value not in (None, [])}
    with reading(settings, model) as source:
        items = source.metrics(query, way, number)
    if not (as_json or as_csv or quiet):
        items = [{**one, **_short(one)} for one in items]
    served = as_csv or any(one["replica"] is not None for one in items)
    columns = (*_COLUMNS, "replica") if served else _COLUMNS
    output.listing(items, columns, id_key="id", as_json=as_json, as_csv=as_csv, quiet=quiet)


@app.command()
@configured(*WHERE)
def drift(
    settings: Settings,
    model: Model = None,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """The streams that a server looks at for drift, and whether they drifted.

    Example: weightledger metrics drift
    """
    server = writing(settings, model)
    assert server is not None, "without --offline there is a server, or an error"
    items = server.drift()
    output.listing(items, _DRIFT, id_key="metric", as_json=as_json, as_csv=as_csv, quiet=quiet)


@app.command("push")
@configured(*WHERE)
def push_(
    settings: Settings,
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="Such as accuracy=0.97."),
    ] = None,
    seq: Annotated[
        int | None,
        typer.Option(help="The state it was observed at, as X-Weights-Seq; else the live one."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--time", help="When: 10m, or ISO 8601 (UTC); else now.")
    ] = None,
    sample_id: Annotated[
        str | None,
        typer.Option(
            "--id", help="With an id a sample of a metric counts once, however often sent."
        ),
    ] = None,
    replica: Annotated[
        str | None, typer.Option(help="The replica that served it; wants --seq.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="Lines of JSON with metric, value, seq, time, id, replica; - is stdin.",
        ),
    ] = None,
    offline: Offline = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Record what was measured elsewhere.

    All of the values are taken, or none and the first that cannot be is named.

    Example: weightledger metrics push accuracy=0.97 --seq 12
    """
    if bool(values) == (file is not None):
        raise FlagError("give NAME=VALUE, or --file with lines of JSON", param="values")
    more = {"seq": seq, "time": moment("--time", at), "id": sample_id, "replica": replica}
    told = {name: value for name, value in more.items() if value is not None}
    if file is not None and told:
        raise FlagError(f"with --file, each line has its own {', '.join(told)}", param="file")
    if file is not None:
        samples = _lines(file)
    else:
        samples = [{**_assigned(one), **told} for one in values or ()]
        if sample_id is not None and len(samples) > 1:
            raise FlagError("--id names one value, and these are several", param="id")
    _require_finite(samples)
    server = writing(settings, model, offline=offline)
    done = {"accepted": 0, "duplicates": 0}
    for at_ in range(0, len(samples), MOST_SAMPLES):
        part = samples[at_ : at_ + MOST_SAMPLES]
        reply = server.push_metrics(part)["data"] if server else _stored(settings, model, part)
        done = {name: count + reply[name] for name, count in done.items()}
    output.facts(done, as_json=as_json)


def _require_finite(samples: Sequence[Mapping[str, Any]]) -> None:
    """Raise InvalidRequest for a number that JSON has no form for."""
    for number, one in enumerate(samples):
        for name, value in one.items() if isinstance(one, Mapping) else ():
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidRequest(
                    f"samples[{number}].{name} must be a finite number, got {value}",
                    param=f"samples[{number}].{name}",
                )


def _stored(
    settings: Settings, model: str | None, samples: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    with opened(settings, model) as history:
        pushed = push(
            samples,
            history,
            StoredMetrics(history.store.metrics).push,
            now_us=time.time_ns() // 1000,
            keep_s=settings.metrics_retention_days * 86_400,
        )
    return {"accepted": pushed.accepted, "duplicates": pushed.duplicates}


def _assigned(text: str) -> dict[str, Any]:
    match = _ASSIGNED.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        return {"metric": match[1], "value": float(match[2])}
    except ValueError:
        raise FlagError(f"expected NAME=VALUE such as accuracy=0.97, got {text!r}") from None


def _lines(file: Path) -> list[Mapping[str, Any]]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}", param="file") from None
    samples = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            samples.append(json.loads(line))
        except ValueError as error:
            raise InvalidRequest(
                f"{file}, line {number} is no JSON: {error}", param="file"
            ) from None
    if not samples:
        raise InvalidRequest(f"{file} has no samples", param="file")
    return samples


def _short(item: Mapping[str, Any]) -> dict[str, Any]:
    """For people: three digits that count, and times to the second."""
    numbers = {name: None if item[name] is None else f"{item[name]:.3g}" for name in _NUMBERS}
    return {**numbers, "start": f"{item['start'][:10]} {item['start'][11:19]}"}
