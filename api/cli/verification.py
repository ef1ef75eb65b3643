"""`weightledger verify`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from weightledger.api.cli import output
from weightledger.api.cli.local import opened
from weightledger.api.cli.options import WHERE, Json, Model, configured
from weightledger.api.cli.parallel import SHARED, for_chains, for_states, sharing
from weightledger.api.cli.source import writing
from weightledger.api.server.settings import Settings
from weightledger.ledger.audit import checkpoints, marks, notes
from weightledger.ledger.audit.marks import VerifiedMark
from weightledger.ledger.audit.notary import witnessed_problems
from weightledger.ledger.audit.notes import VerifierKey
from weightledger.ledger.audit.report import Report
from weightledger.ledger.audit.signing import Signer, require_continuation
from weightledger.ledger.audit.tree import EventTree
from weightledger.ledger.audit.witnesses import Witness
from weightledger.ledger.errors import CorruptLedger, InvalidRequest, LedgerError, ProofError
from weightledger.ledger.history.reader import History

if TYPE_CHECKING:
    from weightledger.rules.dtesn.recomputing import Recomputed

_MARK_EVERY_S = 10.0


@configured(*WHERE, *SHARED, "signing_key", "witness", "witness_quorum")
def verify(
    settings: Settings,
    model: Model = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Hashes, the tree, order and rows: rebuild no state.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Also hash the tensors that the server serves.")
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
    witnessed: Annotated[
        bool,
        typer.Option(
            "--witnessed", help="Also ask the witnesses what they cosigned: the log continues it."
        ),
    ] = False,
    since: Annotated[
        int | None,
        typer.Option(min=0, metavar="SEQ", help="Take events before this one as they are."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the last verification came to.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Recompute every digest from the log.

    Exit status 1, and the first bad event, when something does not fit. How far it came is kept in
    the data folder, also when it is interrupted: --resume goes on from there.

    Example: weightledger verify --live --jobs 2
    """
    from weightledger.ledger.audit.verify import verify as check  # imports torch

    if resume and since is not None:
        raise InvalidRequest("--resume and --since cannot both say where to begin", param="since")
    server = writing(settings, model) if live else None  # told before the long work, not after it
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn())
    with (
        sharing(settings, for_chains if quick else for_states) as executor,
        opened(settings, model, guarded=False) as history,
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
    ):
        task = bar.add_task("events")
        start, problem = since or 0, None
        if resume:
            start, problem = _resumed(settings, history, states=not quick)
        report = Report(history.model, since=start, problem=problem)
        if problem is None:
            # Several processes come to events out of order; what --since left out is not verified.
            in_order = executor.jobs == 1
            marked = _marking(settings, history, start, states=not quick)

            def progress(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)
                if in_order and since is None:
                    marked(done)

            report = check(history, progress, states=not quick, executor=executor, since=start)
        kept_by = history.store.home.version()
        facts = _facts(report, kept_by, "quick" if quick else "full")
        problem = report.problem
        if since is None:
            _mark(settings, history, report, states=not quick)
        if checkpoint is not None and problem is None:
            problem = _departure(settings, history, checkpoint, key)
            if problem is None:
                facts["checkpoint"] = f"{checkpoint} holds"
        if witnessed and problem is None:
            problem = "; ".join(_unwitnessed(settings, history)) or None
            if problem is None:
                facts["witnessed"] = "the log continues what its witnesses hold"
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
    facts["ok"] = problem is None
    facts["result"] = "ok" if problem is None else f"BAD: {problem}"
    output.facts(facts, as_json=as_json)
    if problem is not None:
        raise typer.Exit(1)


def _facts(report: Report, kept_by: str, level: str) -> dict[str, Any]:
    return {
        "model": report.model,
        "database": kept_by,
        "level": level,
        "since": report.since,
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


def _resumed(settings: Settings, history: History, *, states: bool) -> tuple[int, str | None]:
    """The first event that was not verified so thoroughly yet, and what is wrong before it."""
    mark = marks.read(settings.data_dir, history.store)
    if mark is None or (states and not mark.states):
        return 0, None
    try:
        mark.require_same(history.store)
    except CorruptLedger as error:
        return mark.events, str(error)
    return mark.events, None


def _marking(
    settings: Settings, history: History, start: int, *, states: bool
) -> Callable[[int], None]:
    """Keeps how far a verification has come, every few seconds."""
    last = time.monotonic()

    def marked(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _MARK_EVERY_S and done > start:
            last = time.monotonic()
            _write(settings, history, done, states=states)

    return marked


def _mark(settings: Settings, history: History, report: Report, *, states: bool) -> None:
    """Keep how far the log is verified now."""
    if report.ok and report.head_seq is not None:
        _write(settings, history, report.head_seq + 1, states=states)


def _write(settings: Settings, history: History, events: int, *, states: bool) -> None:
    before = marks.read(settings.data_dir, history.store)
    if before is not None and before.states and not states and before.events >= events:
        return  # what is known already says more
    root = EventTree(history.store).root(events).hex()
    try:
        marks.write(
            settings.data_dir, history.store, VerifiedMark(events, root, states, time.time())
        )
    except LedgerError as error:
        output.note(f"how far it came is not remembered: {error}")


def _departure(settings: Settings, history: History, file: Path, key: str | None) -> str | None:
    """What of a log is not what a checkpoint of it says; None when all is."""
    try:
        note = notes.parse(file.read_text("utf-8"))
        if key is None:
            keys = Signer.open(settings.data_dir, settings.signing_key).verifier_keys(history.store)
            verifier = next((one for one in keys if any(map(one.made, note.signatures))), keys[0])
        else:
            verifier = VerifierKey.parse(key)
        verifier.check(note)
        require_continuation(history.store, checkpoints.read(note))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} cannot be read: {error}", param="checkpoint") from None
    except ProofError as error:
        return str(error)
    return None


def _unwitnessed(settings: Settings, history: History) -> list[str]:
    """Why the log is not what its witnesses have cosigned; empty when it is."""
    signer = Signer.open(settings.data_dir, settings.signing_key)
    known = [Witness.parse(text) for text in settings.witness]
    return witnessed_problems(history.store, signer, known, settings.witness_quorum)


def _recomputed(settings: Settings, model: str) -> "Recomputed":
    """What learning rules give when they are run again."""
    from weightledger import Ledger
    from weightledger.rules.dtesn import recompute

    with Ledger.open(settings.update_config().url, upgrade=False) as ledger:
        return recompute(ledger.model(model))
