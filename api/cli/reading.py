"""Commands that only read: status, log, show, replay."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import save_file

from weightledger.api.cli import output
from weightledger.api.cli.options import (
    DEFAULT_DATA_DIR,
    Csv,
    Database,
    DataDir,
    Json,
    Model,
    Quiet,
)
from weightledger.api.cli.source import open_history
from weightledger.api.rest.schemas import event_item, iso_time
from weightledger.api.server.folder import holder
from weightledger.ledger.errors import InvalidRequest, StorageError
from weightledger.ledger.events import Event
from weightledger.ledger.history.positions import parse_time
from weightledger.ledger.history.reader import History
from weightledger.ledger.store import EventFilter
from weightledger.ledger.tensors.spec import WEIGHTS


def status(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Where a model stands."""
    with open_history(data_dir, database, model) as history:
        head = history.head()
        listed = history.versions()
        server = holder(data_dir)
        output.facts(
            {
                "model": history.model,
                "head_seq": head.seq,
                "state_seq": head.state_seq,
                "digest": head.state_after.hex(),
                "recorded_at": iso_time(head.recorded_at),
                "total_updates": head.counts.applied,
                "total_versions": len(listed),
                "current_version": next((v.version_id for v in listed if v.is_active), None),
                "server": server.url if server else None,
            },
            as_json=as_json,
        )


def log(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
    parameter: Annotated[str | None, typer.Option(help="Glob over parameter names.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Kind of event; repeatable.")] = None,
    actor: Annotated[list[str] | None, typer.Option(help="Who wrote it; repeatable.")] = None,
    since: Annotated[str | None, typer.Option(help="UTC time, inclusive.")] = None,
    until: Annotated[str | None, typer.Option(help="UTC time, inclusive.")] = None,
    number: Annotated[int, typer.Option("-n", min=1, help="How many, newest first.")] = 20,
    as_json: Json = False,
    as_csv: Csv = False,
    quiet: Quiet = False,
) -> None:
    """Events, newest first."""
    where = EventFilter(
        kinds=kind or (),
        actors=actor or (),
        parameter=parameter,
        since=_moment("--since", since),
        until=_moment("--until", until),
    )
    with open_history(data_dir, database, model) as history:
        items = [
            _item(history, event) | {"what": summary(event)}
            for event in history.events(where, limit=number)
        ]
    output.listing(
        items,
        ("seq", "recorded_at", "id", "kind", "what", "actor"),
        id_key="id",
        as_json=as_json,
        as_csv=as_csv,
        quiet=quiet,
    )


def show(
    event_id: Annotated[str, typer.Argument(help="Update id, version id or seq:N.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """One event, whole."""
    with open_history(data_dir, database, model) as history:
        item = _item(history, history.event(event_id))
    output.facts(item, as_json=as_json)


def replay(
    out: Annotated[Path, typer.Option("-o", "--out", help="The safetensors file to write.")],
    to: Annotated[str, typer.Option(help="A position: version id, seq:N, head~N, a time …")] = (
        "head"
    ),
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
    model: Model = None,
) -> None:
    """Rebuild a state from the log, verify its digests, and write it as safetensors."""
    with open_history(data_dir, database, model) as history:
        position = history.resolve(to)
        state, tensors = history.rebuild(position.node, position.state)
        name = history.model
    named = {key.removeprefix(WEIGHTS): tensor for key, tensor in tensors.items()}
    for alias, first in state.aliases.items():  # safetensors stores no shared memory
        named[alias.removeprefix(WEIGHTS)] = tensors[first].clone()
    _write(out, named, {"model": name, "seq": str(position.node), "digest": state.value.hex()})
    output.facts(
        {
            "model": name,
            "position": position.text,
            "seq": position.node,
            "digest": state.value.hex(),
            "tensors": len(named),
            "bytes": out.stat().st_size,
            "file": str(out),
        },
        as_json=False,
    )


def summary(event: Event) -> str:
    """What an event did, in a few words."""
    body = event.body
    if "operation" in body:
        parts = [body["operation"], body.get("parameter", body.get("adapter", ""))]
        if "learning_rate" in body:
            parts.append(f"lr {body['learning_rate']}")
        parts.append(f"{sum(change.changed for change in event.changes)} changed")
        return " ".join(part for part in parts if part)
    if "to" in body:
        return f"to {body['to']} ({body['cause']})"
    if "description" in body:
        return str(body["description"])
    return str(body.get("version_id", ""))


def _item(history: History, event: Event) -> dict[str, Any]:
    return event_item(event, history.store.annotation(event.seq))


def _moment(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    moment = parse_time(text)
    if moment is None:
        raise InvalidRequest(f"{option} takes a time such as 2026-11-22T10:00:00Z, got {text!r}")
    return moment


def _write(out: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    partial = out.with_name(out.name + ".part")
    try:
        save_file(tensors, partial, metadata=metadata)
        partial.replace(out)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {out}: {error}") from error


def parse_json(option: str, text: str) -> Any:
    """A JSON option, or `@file` with JSON in it."""
    try:
        source = Path(text[1:]).read_text() if text.startswith("@") else text
        return json.loads(source)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{option} takes JSON or @file: {error}") from None
