"""`weightledger checkpoint`, `proof`, `consistency`, `rotate-signing-key` and `export`: what can be
checked without the ledger."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from weightledger.api.cli import output
from weightledger.api.cli.files import replacing
from weightledger.api.cli.local import ledger_opened, opened
from weightledger.api.cli.options import WHERE, Actor, Json, Model, Reason, configured
from weightledger.api.cli.source import offline_caller
from weightledger.api.server.settings import Settings
from weightledger.ledger.audit import bom, checkpoints, exports, parquet, signing
from weightledger.ledger.audit.signing import Signer
from weightledger.ledger.errors import InvalidRequest

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
        signer = Signer.open(settings.data_dir, settings.signing_key)
        proven = signer.prove(store, named.seq, digest)
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
def consistency(
    settings: Settings,
    first: Annotated[int, typer.Argument(min=0, help="A number of events.")],
    second: Annotated[
        int | None, typer.Argument(min=0, help="A larger one; by default all there are.")
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Print a proof that one length of the log continues another.

    Both roots, and the hashes between them, in base64 (RFC 6962, section 2.1.2).

    Example: weightledger consistency 100 200 --json
    """
    with opened(settings, model) as history:
        proof = signing.consistency(history.store, first, second).to_json()
    output.facts(proof, as_json=as_json)


@configured(*WHERE, "signing_key")
def rotate_signing_key(
    settings: Settings,
    lost: Annotated[
        bool, typer.Option("--lost", help="The old key is gone: the new one signs alone.")
    ] = False,
    reason: Reason = None,
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Sign checkpoints with another key from now on.

    Every log of the ledger gets an event with both public keys, and a checkpoint over it that both
    keys sign. Then the old private key is forgotten. Give the new verifier key to auditors and
    witnesses.

    Example: weightledger rotate-signing-key -m 'yearly'
    """
    from weightledger.ledger.rotation import rotate_signing_key as rotate

    if settings.signing_key is not None:
        raise InvalidRequest(
            "the signing key is given by WEIGHTLEDGER_SIGNING_KEY: it is not the data folder's to"
            " replace",
            param="signing_key",
        )
    with ledger_opened(settings) as ledger:
        histories = [ledger.history(name) for name in ledger.models()]
        caller = offline_caller(reason, actor)
        rotate(histories, settings.data_dir, lost=lost, caller=caller)
        signer = Signer.open(settings.data_dir)
        keys = {one.model: str(signer.key(one.store).verifier) for one in histories}
    output.facts({"keys": keys}, as_json=as_json)


@configured(*WHERE)
def export(
    settings: Settings,
    out: Out,
    form: Annotated[
        Literal["jsonl", "parquet", "cyclonedx"],
        typer.Option(help="Lines of JSON, Parquet, or a CycloneDX ML-BOM of the model."),
    ] = "jsonl",
    payloads: Annotated[
        bool,
        typer.Option(
            "--payloads", help="Also what restores each state: `weightledger import` takes it."
        ),
    ] = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Write the log as lines of JSON, to be read and checked without the database.

    Or as Parquet (`pip install 'weightledger[parquet]'`), a row an event, or as a CycloneDX ML-BOM,
    which lists the model, its versions and every change of its weights.

    With --payloads it is the whole log, which `weightledger import` writes into another ledger,
    event by event the same.

    Example: weightledger export -o log.jsonl
    """
    if payloads and form != "jsonl":
        raise InvalidRequest("payloads are written as lines of JSON only", param="payloads")
    with opened(settings, model) as history, replacing(out) as partial:
        if form == "parquet":
            parquet.write(history.store, partial)
        elif form == "cyclonedx":
            text = json.dumps(bom.bom(history), ensure_ascii=False, indent=2)
            partial.write_text(text + "\n", "utf-8")
        else:
            lines = exports.whole_lines(history) if payloads else exports.lines(history.store)
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(lines)
        facts = {"model": history.model, "file": str(out), "form": form, "payloads": payloads}
    output.facts(facts, as_json=as_json)
