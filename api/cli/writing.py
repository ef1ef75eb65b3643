"""Commands that write: update and rollback. The server that serves the ledger does the work."""

from pathlib import Path
from typing import Annotated, Any

import typer

from weightledger.api.cli import output
from weightledger.api.cli.moves import move
from weightledger.api.cli.options import (
    WHERE,
    Actor,
    Json,
    Model,
    Offline,
    Reason,
    configured,
)
from weightledger.api.cli.replaying import Mode, OnlyAfter, Without
from weightledger.api.cli.source import reading, writer
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger import json_text


@configured(*WHERE)
def update(
    settings: Settings,
    parameter: Annotated[str, typer.Argument(help="The parameter's name.")],
    data: Annotated[
        str, typer.Option(help="JSON: the parameter's shape, flat, or one number; or @file.")
    ],
    update_type: Annotated[
        str, typer.Option("--type", help="additive, multiplicative or replace.")
    ] = "additive",
    learning_rate: Annotated[float, typer.Option("--lr", help="In [0, 1].")] = 0.01,
    metadata: Annotated[str | None, typer.Option(help="A JSON object, or @file.")] = None,
    reason: Reason = None,
    actor: Actor = None,
    offline: Offline = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Apply one update to one parameter.

    How the new weight is made of the weight w, the data u and the learning rate lr:

    additive: w + lr · u

    multiplicative: w · (1 + lr · u)

    replace: u, without the learning rate

    Exit status 1 when the update is refused.

    Example: weightledger update layers.0.bias --data 0.5 --lr 0.1 -m 'lift the bias'
    """
    body: dict[str, Any] = {
        "parameter_name": parameter,
        "update_data": parse_json("--data", data),
        "learning_rate": learning_rate,
        "update_type": update_type,
    }
    if metadata is not None:
        body["metadata"] = parse_json("--metadata", metadata)
    with writer(settings, model, reason=reason, actor=actor, offline=offline) as log:
        result = log.update(body)
    output.facts(result, as_json=as_json)
    if not result["success"]:
        raise typer.Exit(1)


@configured(*WHERE)
def rollback(
    settings: Settings,
    to: Annotated[str, typer.Option(metavar="POSITION", help="v1, update_3, 12, head~1, a time …")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be undone, and change nothing.")
    ] = False,
    without: Without = None,
    mode: Mode = "mechanical",
    only_after: OnlyAfter = None,
    reason: Reason = None,
    actor: Actor = None,
    offline: Offline = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Move the model to another state, bit for bit.

    A rollback is an event of its own: what it undoes stays in the log and can be gone back to. With
    --without the state is what that position would be had some events not happened; then the event
    is an update, judged like any other, and exit status 1 says that it was refused.

    Example: weightledger rollback --to head~1 -m 'wrong labels' --dry-run
    """
    if without:
        asked = {"to": to, "without": without, "mode": mode, "only_after": only_after}
        _adopt(settings, asked, dry_run, reason, actor, offline, model, as_json)
        return
    start, end = "head", to
    if not dry_run:
        with writer(settings, model, reason=reason, actor=actor, offline=offline) as log:
            seq = log.rollback(to)
    with reading(settings, model) as source:
        if not dry_run:
            done = source.event(f"seq:{seq}")["facts"]
            start, end = f"seq:{done['from_seq']}", f"seq:{done['to_event']}"
        found = move(source, start, end)
    if as_json:
        output.facts({"dry_run": dry_run, **found}, as_json=True)
        return
    output.facts(
        {
            "from": _state(found["from"]),
            "to": _state(found["to"]),
            "would undo" if dry_run else "undone": found["undone"],
            "would redo" if dry_run else "redone": found["redone"],
        },
        as_json=False,
    )


def _adopt(
    settings: Settings,
    asked: dict[str, Any],
    dry_run: bool,
    reason: str | None,
    actor: str | None,
    offline: bool,
    model: str | None,
    as_json: bool,
) -> None:
    """Make a what-if the model's state, or only say what it would change."""
    if dry_run:
        with reading(settings, model) as source:
            output.facts(source.what_if(asked), as_json=as_json)
        return
    with writer(settings, model, reason=reason, actor=actor, offline=offline) as log:
        result = log.adopt(asked)
    output.facts(result, as_json=as_json)
    if not result["success"]:
        raise typer.Exit(1)


def _state(one: dict[str, Any]) -> str:
    return f"{one['id']} (seq {one['seq']}, digest {one['digest'][:12]}…)"


def parse_json(option: str, text: str) -> Any:
    """A JSON option, or `@file` with JSON in it."""
    try:
        source = Path(text[1:]).read_text() if text.startswith("@") else text
        return json_text.loads(source)
    except (OSError, ValueError, RecursionError) as error:
        raise FlagError(f"{option} takes JSON or @file: {error}") from None
