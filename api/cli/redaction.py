"""`weightledger redact`."""

from typing import Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.local import opened
from weightledger.api.cli.options import Actor, Json, Model, Reason, configured
from weightledger.api.cli.source import offline_caller
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError

_TEXTS = ("actor", "reason", "metadata")


@configured("data_dir", "database")
def redact(
    settings: Settings,
    events: Annotated[
        list[str] | None, typer.Argument(metavar="EVENT", help="update_3, v1, 12 …; several.")
    ] = None,
    of: Annotated[
        str | None, typer.Option(help="Every event of this actor, beside those that are named.")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help=f"What goes, of {', '.join(_TEXTS)}; repeatable. By default all of it."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which events it would be, and change nothing.")
    ] = False,
    reason: Reason = None,
    actor: Actor = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Take away what was written beside events.

    Actor, reason and metadata are in the log as salted digests only, so they can go while every
    hash and proof stays. An event says what went, who took it away and why. A server may go on
    serving meanwhile. On PostgreSQL it takes the tables' owner.

    Example: weightledger redact update_3 --field metadata -m 'erasure request 118'
    """
    from weightledger.ledger import redaction  # imports torch

    texts = field or list(_TEXTS)
    unknown = sorted(set(texts) - set(_TEXTS))
    if unknown:
        raise FlagError(f"--field is {', '.join(_TEXTS)}, got {unknown[0]!r}")
    if not events and of is None:
        raise FlagError("say which events, or whose with --of")
    with opened(settings, model) as history:
        seqs = {history.event(name).seq for name in events or ()}
        if of is not None:
            seqs |= set(redaction.by_actor(history, of))
        done = []
        if not dry_run:
            caller = offline_caller(reason, actor)
            done = redaction.redact(history, sorted(seqs), texts, caller=caller)
        facts = {
            "model": history.model,
            "dry_run": dry_run,
            "fields": list(texts),
            "events": [history.require(seq).name for seq in sorted(seqs)],
            "recorded_as": [event.name for event in done],
        }
    output.facts(facts, as_json=as_json)
