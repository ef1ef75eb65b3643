"""`weightledger verify`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from weightledger.api.cli import output
from weightledger.api.cli.client import Client
from weightledger.api.cli.options import (
    DEFAULT_DATA_DIR,
    ApiKey,
    Database,
    DataDir,
    Json,
    Model,
    Url,
)
from weightledger.api.cli.source import open_history, server_url
from weightledger.api.cli.writing import local_log
from weightledger.ledger.audit.verify import verify as check
from weightledger.ledger.errors import NotFound
from weightledger.rules.dtesn import recompute


def verify(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database: Database = None,
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
    processes: Annotated[int, typer.Option(min=1, help="Processes that check the chain.")] = 1,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Recompute every digest from the log; exit 1 and name the first bad event."""
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn())
    with (
        open_history(data_dir, database, model, guarded=False) as history,
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
    }
    if report.ok and live:
        server = server_url(url, data_dir)
        if server is None:
            raise NotFound(f"no server holds {data_dir}; start one, or give --url")
        served = Client(server, api_key).verify()
        facts["live_seq"], facts["live_digest"] = served["seq"], served["digest"]
    problem = report.problem
    if report.ok and rules:
        with local_log(data_dir, database, model) as log:
            again = recompute(log)
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
