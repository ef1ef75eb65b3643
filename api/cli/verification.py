"""`weightledger verify`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from weightledger.api.cli import output
from weightledger.api.cli.local import opened
from weightledger.api.cli.options import WHERE, Json, Model, configured
from weightledger.api.cli.source import writing
from weightledger.api.server.settings import Settings
from weightledger.ledger.audit import checkpoints, notes
from weightledger.ledger.audit.notes import VerifierKey
from weightledger.ledger.audit.signing import Signer, require_continuation
from weightledger.ledger.errors import InvalidRequest, ProofError
from weightledger.ledger.history.reader import History

if TYPE_CHECKING:
    from weightledger.rules.dtesn.recomputing import Recomputed


@configured(*WHERE, "signing_key")
def verify(
    settings: Settings,
    model: Model = None,
    live: Annotated[
        bool, typer.Option("--live", help="Also hash the tensors that the server serves.")
    ] = False,
    chain: Annotated[
        bool, typer.Option("--chain", help="Hashes, order and rows only: rebuild no state.")
    ] = False,
    rules: Annotated[
        bool, typer.Option("--rules", help="Also run learning rules again, where inputs were kept.")
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint kept elsewhere: nothing before it was changed or cut off."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="The verifier key it was signed with; by default this data folder's."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that check the chain.")] = 1,
    as_json: Json = False,
) -> None:
    """Recompute every digest from the log.

    Exit status 1, and the first bad event, when something does not fit.

    Example: weightledger verify --live --processes 2
    """
    from weightledger.ledger.audit.verify import verify as check  # imports torch

    server = writing(settings, model) if live else None  # told before the long work, not after it
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn())
    with (
        opened(settings, model, guarded=False) as history,
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
    ):
        task = bar.add_task("events")
        report = check(
            history,
            lambda done, total: bar.update(task, completed=done, total=total),
            states=not chain,
            processes=processes,
        )
        kept_by = history.store.home.version()
        problem, continued = report.problem, False
        if checkpoint is not None and problem is None:
            problem = _departure(settings, history, checkpoint, key)
            continued = problem is None
    facts = {
        "model": report.model,
        "database": kept_by,
        "events": report.events,
        "states": report.states,
        "tensor_digests": report.tensors,
        "payload_bytes": report.payload_bytes,
        "snapshots": report.snapshots,
        "head_seq": report.head_seq,
        "head_digest": report.head_digest.hex() if report.head_digest else None,
        "head_hash": report.head_hash.hex() if report.head_hash else None,
        "tree_root": report.tree_root.hex() if report.tree_root else None,
    }
    if continued:
        facts["checkpoint"] = f"{checkpoint} holds"
    if report.ok and server is not None:
        served = server.verify()
        facts["live_seq"], facts["live_digest"] = served["seq"], served["digest"]
    if problem is None and rules:
        again = _recomputed(settings, report.model)
        facts["rules_exact"], facts["rules_close"] = again.exact, again.close
        facts["rules_state_only"] = again.state_only
        facts["rules_without_activities"] = again.without_activities
        facts["rules_pruned"] = again.pruned
        if not again.ok:
            problem = "; ".join(f"{name}: {why}" for name, why in again.problems.items())
    facts["first_bad_event"] = report.bad_seq
    facts["result"] = "ok" if problem is None else f"BAD: {problem}"
    output.facts(facts, as_json=as_json)
    if problem is not None:
        raise typer.Exit(1)


def _departure(settings: Settings, history: History, file: Path, key: str | None) -> str | None:
    """What of a log is not what a checkpoint of it says; None when all is."""
    try:
        note = notes.parse(file.read_text("utf-8"))
        if key is None:
            signer = Signer.open(settings.data_dir, settings.signing_key)
            verifier = signer.key(history.store).verifier
        else:
            verifier = VerifierKey.parse(key)
        verifier.check(note)
        require_continuation(history.store, checkpoints.read(note))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} cannot be read: {error}", param="checkpoint") from None
    except ProofError as error:
        return str(error)
    return None


def _recomputed(settings: Settings, model: str) -> "Recomputed":
    """What learning rules give when they are run again."""
    from weightledger import Ledger
    from weightledger.rules.dtesn import recompute

    with Ledger.open(settings.update_config().url, upgrade=False) as ledger:
        return recompute(ledger.model(model))
