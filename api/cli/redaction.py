"""`weightledger redact`."""

from typing import Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.local import opened
from weightledger.api.cli.options import WHERE, Actor, Json, Model, Reason, configured
from weightledger.api.cli.source import offline_caller, writing
from weightledger.api.items import redaction_facts
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.history.redactions import TEXTS, seqs_of_actor


@configured(*WHERE)
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
        typer.Option(help=f"What goes, of {', '.join(TEXTS)}; repeatable. By default all of it."),
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
    hash and proof stays. An event says what went, who took it away and why. It is done in the
    database itself, while a server may go on serving; on PostgreSQL a server's role may do it.
    With --url that server does it, for an admin key, and under the two-person rule it waits there.

    Example: weightledger redact update_3 --field metadata -m 'erasure request 118'
    """
    texts = field or list(TEXTS)
    unknown = sorted(set(texts) - set(TEXTS))
    if unknown:
        raise FlagError(f"--field is {', '.join(TEXTS)}, got {unknown[0]!r}")
    if not events and of is None:
        raise FlagError("say which events, or whose with --of")
    if settings.url is not None:
        server = writing(settings, model, actor=actor)
        assert server is not None, "without --offline there is a server, or an error"
        asked = {"events": events or [], "of": of, "fields": texts, "dry_run": dry_run}
        output.facts(server.redact({**asked, "reason": reason or ""}), as_json=as_json)
        return
    if settings.two_person_rule and not dry_run:
        raise InvalidRequest(
            "under the two-person rule redaction is asked for at the server: name it with --url"
        )
    from weightledger.ledger.redaction import redact as redacted  # imports torch

    with opened(settings, model) as history:
        seqs = {history.event(name).seq for name in events or ()}
        if of is not None:
            seqs |= set(seqs_of_actor(history.store, of))
        done = []
        if not dry_run:
            done = redacted(history, sorted(seqs), texts, caller=offline_caller(reason, actor))
        facts = redaction_facts(history, sorted(seqs), texts, done)
    output.facts(facts, as_json=as_json)
