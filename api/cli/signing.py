"""`weightledger sign`: a version's weights in a folder that OpenSSF's model-signing verifies."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.local import opened
from weightledger.api.cli.options import WHERE, Json, Model, configured
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger.audit.signing import Signer


@configured(*WHERE, "signing_key")
def sign(
    settings: Settings,
    position: Annotated[
        str, typer.Argument(help="Which state: a version, seq:N, head~N, a time …")
    ] = "head",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A new folder, or one signed before."),
    ] = None,
    private_key: Annotated[
        Path | None,
        typer.Option(help="Sign with this key (PEM, P-256, P-384 or P-521), not the ledger's own."),
    ] = None,
    key: Annotated[
        bool, typer.Option("--key", help="Print the public key instead: give it to who verifies.")
    ] = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Write a version's weights to a folder, with a signature that model_signing verifies.

    The folder holds safetensors files with an index, and model.sig (OpenSSF model signing). One
    that was signed before is brought to the version asked for by what differs, and only files that
    change are hashed again.

    Example: weightledger sign v3 -o signed
    """
    from weightledger.ledger.bundles import signing, statement  # import torch

    if out is None and not key:
        raise FlagError("say where to with --out")
    with opened(settings, model) as history:
        if private_key is not None:
            used = statement.key_from_file(private_key)
        else:
            seed = Signer.open(settings.data_dir, settings.signing_key).seed()
            used = statement.key_from_seed(seed)
        if key or out is None:
            sys.stdout.write(statement.public_pem(used))
            return
        signed = signing.sign(history, position, out, used)
    facts = {
        **signed.facts,
        "folder": str(out),
        "files": signed.files,
        "files_written": signed.written,
        "bytes_written": signed.written_bytes,
    }
    output.facts(facts, as_json=as_json)
