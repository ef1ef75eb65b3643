"""`weightledger checkpoint`, `proof` and `export`: what can be checked without the ledger."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.files import replacing
from weightledger.api.cli.local import opened
from weightledger.api.cli.options import WHERE, Json, Model, configured
from weightledger.api.server.settings import Settings
from weightledger.ledger.audit import checkpoints, exports
from weightledger.ledger.audit.signing import Signer
from weightledger.ledger.errors import ProofError

_SIGNING = (*WHERE, "signing_key")

Out = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]


@configured(*_SIGNING)
def checkpoint(
    settings: Settings,
    model: Model = None,
    key: Annotated[
        bool, typer.Option("--key", help="Print the verifier key instead: give it to auditors.")
    ] = False,
) -> None:
    """Print a signed checkpoint: how many events the log has, and the root of their tree.

    Keep it somewhere else, with the verifier key. Whoever holds both can tell later whether
    anything before it was changed or cut off: `weightledger verify --checkpoint FILE`, or without
    this ledger `python -m weightledger.verify_offline`.

    Example: weightledger checkpoint > monday.checkpoint
    """
    with opened(settings, model) as history:
        signer = Signer.open(settings.data_dir, settings.signing_key)
        if key:
            sys.stdout.write(f"{signer.key(history.store).verifier}\n")
        else:
            sys.stdout.write(str(signer.checkpoint(history.store)))


@configured(*_SIGNING)
def proof(
    settings: Settings,
    event: Annotated[str, typer.Argument(help="Which event: an id, or seq:N.")],
    out: Out,
    model: Model = None,
    digest: Annotated[
        str | None,
        typer.Option(
            help="The X-Weights-Digest of a reply: fail unless the state after the event has it."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a proof that an event is in the log: one file, checkable offline.

    For a reply, give its X-Weights-Seq as seq:N and its X-Weights-Digest: the file then is the
    receipt that these weights were live from that event on.

    Example: weightledger proof seq:17 -o reply.tlog-proof --digest 0b894196a3…
    """
    with opened(settings, model) as history:
        store, named = history.store, history.event(event)
        if digest is not None and named.state_after.hex() != digest.lower():
            raise ProofError(
                f"after {named.name} the state was {named.state_after.hex()}, not {digest}"
            )
        signer = Signer.open(settings.data_dir, settings.signing_key)
        proven = signer.prove(store, named.seq)
        with replacing(out) as partial:
            partial.write_text(str(proven), "utf-8")
        facts = {
            "event": named.name,
            "seq": named.seq,
            "state_after": named.state_after.hex(),
            "events": checkpoints.read(proven.checkpoint).size,
            "key": str(signer.key(store).verifier),
            "file": str(out),
        }
    output.facts(facts, as_json=as_json)


@configured(*WHERE)
def export(settings: Settings, out: Out, model: Model = None, as_json: Json = False) -> None:
    """Write the log as lines of JSON, to be read and checked without the database.

    Example: weightledger export -o log.jsonl
    """
    with opened(settings, model) as history, replacing(out) as partial:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(exports.lines(history.store))
        facts = {"model": history.model, "file": str(out)}
    output.facts(facts, as_json=as_json)
