"""kill -9 between the steps of a write that two people make: it happens once, or it waits on."""

import os
import signal
from collections.abc import Callable

import pytest
import torch

from tests.faults import folders, models
from tests.faults.folders import MODEL
from tests.forked import forking
from tests.waiting import PATIENCE_S
from weightledger import Caller, DynamicModelManager, DynamicUpdateConfig, Ledger, TorchEngine
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import AwaitingApproval
from weightledger.ledger.log import Log
from weightledger.ledger.writing.showing import Committed

ANA, BEN = Caller(actor="ana", reason="it drifts"), Caller(actor="ben", reason="looked at it")


def manager_of(ledger: Ledger) -> DynamicModelManager:
    config = DynamicUpdateConfig(two_person_rule=True)
    engine = TorchEngine(models.factory())
    return DynamicModelManager(engine, MODEL, config=config, ledger=ledger, on_mismatch="ledger")


def update(log: Log) -> None:
    request = folders.request("2.bias", [1.0, 2.0, 3.0, 4.0], actor="ana", reason="it drifts")
    with pytest.raises(AwaitingApproval):
        log.apply(request)


def roll_back(log: Log) -> None:
    with pytest.raises(AwaitingApproval):
        log.rollback("seq:0", caller=ANA)


def ask_and_approve(url: str, ask: Callable[[Log], None], killed_after: str) -> None:
    """Die by kill -9 as soon as an event of that kind is durable."""
    with Ledger.open(url) as ledger:
        log = manager_of(ledger).log

        def die(committed: Committed) -> None:
            if committed.event.kind == killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

        log.subscribe(die)
        ask(log)
        log.approve("approval_0", caller=BEN)


WAYS = [
    *((update, kind) for kind in ("approval_requested", "approval_decided", "updated")),
    *((roll_back, kind) for kind in ("approval_requested", "approval_decided", "rolled_back")),
]


@pytest.mark.parametrize(("ask", "killed_after"), WAYS)
def test_a_write_that_was_approved_is_made_once_wherever_its_process_died(
    database_url: str, ask: Callable[[Log], None], killed_after: str
) -> None:
    kind = "updated" if ask is update else "rolled_back"
    with Ledger.open(database_url) as ledger:  # a state to roll back from
        ledger.model(MODEL, engine=TorchEngine(models.factory())).apply(
            folders.request("2.bias", torch.full((4,), 9.0))
        )
    process = forking().Process(target=ask_and_approve, args=(database_url, ask, killed_after))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL

    for start in range(3):
        with Ledger.open(database_url) as ledger:
            manager = manager_of(ledger)
            log = manager.log
            written = [one for one in log.events(kinds=[kind]) if one.seq > 1]
            (approval,) = log.approvals()
            if killed_after == "approval_requested" and not start:
                assert (approval.state, written) == ("pending", [])
                log.approve("approval_0", caller=BEN)
            else:
                assert approval.state == "carried out"
                assert len(written) == 1
                assert approval.outcome == written[0]
            if start:
                expected = models.factory().state_dict()["2.bias"]
                if ask is update:
                    expected = torch.tensor([1.0, 2.0, 3.0, 4.0])
                assert torch.equal(log.state()["2.bias"], expected)
                assert verify(log.history).problem is None
            manager.close()
