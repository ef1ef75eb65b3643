"""`weightledger learn`: a stream of samples from a file, through a rule, window by window."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from safetensors import SafetensorError
from safetensors.numpy import load_file

from weightledger.api.cli import output
from weightledger.api.cli.options import WHERE, Actor, Json, Model, Reason, configured
from weightledger.api.cli.source import writing
from weightledger.api.cli.writing import parse_json
from weightledger.api.server.settings import Settings
from weightledger.ledger import json_text
from weightledger.ledger.errors import InvalidRequest


@configured(*WHERE)
def learn(
    settings: Settings,
    parameter: Annotated[str, typer.Argument(help="The parameter's name.")],
    file: Annotated[
        Path,
        typer.Argument(help="Activities by name, a sample a row: .npz, .safetensors or .jsonl."),
    ],
    rule: Annotated[str, typer.Option(help="The rule's id; see `rules list`.")] = "rls",
    config: Annotated[str, typer.Option(help="The rule's config: JSON or @file.")] = "{}",
    learning_rate: Annotated[float | None, typer.Option("--lr", help="In [0, 1].")] = None,
    window: Annotated[int, typer.Option(min=1, help="Samples of one event.")] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Samples of one proposal.")] = 1,
    gate: Annotated[
        bool,
        typer.Option(
            help="Score each sample, then learn from it; adopt a window only if it is better."
        ),
    ] = True,
    stream: Annotated[str, typer.Option(help="Whose traces and state to go on with.")] = "default",
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Learn from a file through the server.

    Each window of samples is one event. Exit status 1 when none was adopted.

    Example: weightledger learn 2.weight samples.npz --rule rls --window 100
    """
    server = writing(settings, model, reason=reason, actor=actor)
    assert server is not None
    adopted = refused = samples = 0
    last: dict[str, Any] = {}
    for activities in windows(read(file), window):
        body: dict[str, Any] = {
            "parameter_name": parameter,
            "activities": {name: rows.tolist() for name, rows in activities.items()},
            "rule": rule,
            "rule_config": parse_json("--config", config),
            "learning_rate": learning_rate,
            "gated": gate,
            "batch_size": batch,
            "stream": stream,
        }
        reply = server.enhanced_update(body)
        adopted += reply["success"]
        refused += not reply["success"]
        samples += len(next(iter(activities.values())))
        last = reply["data"]
    output.facts(
        {
            "samples": samples,
            "windows_adopted": adopted,
            "windows_refused": refused,
            "last_update": last["update_id"],
            "last_refusal": last.get("reason"),
        },
        as_json=as_json,
    )
    if not adopted:
        raise typer.Exit(1)


def read(file: Path) -> dict[str, Any]:
    """Arrays by name, all with as many rows; never a pickle."""
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
        elif file.suffix == ".safetensors":
            json_text.require_header_names_once(file)
            found = load_file(file)
        elif file.suffix == ".jsonl":
            found = _columns(
                [json_text.loads(line) for line in file.read_text().splitlines() if line]
            )
        else:
            raise InvalidRequest(f"{file}: expected .npz, .safetensors or .jsonl")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(f"{file} cannot be read: {error}") from None
    counts = {name: len(rows) if rows.ndim else 0 for name, rows in found.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise InvalidRequest(f"{file}: every activity has one row a sample, got {counts}")
    return found


def _columns(rows: list[Any]) -> dict[str, Any]:
    if not rows or any(not isinstance(row, dict) or row.keys() != rows[0].keys() for row in rows):
        raise InvalidRequest("each line is a JSON object with the same names")
    return {name: np.asarray([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def windows(arrays: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """Consecutive samples, `size` at a time."""
    total = len(next(iter(arrays.values())))
    for start in range(0, total, size):
        yield {name: rows[start : start + size] for name, rows in arrays.items()}
