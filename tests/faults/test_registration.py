"""kill -9 while a model is registered, at each step: nothing is there afterwards, or all of it."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.faults.children import Children
from weightledger import Ledger
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import CorruptLedger

MODEL = "m"
BASE = {"a": torch.arange(40_000.0), "b": torch.ones(3)}

# Where the process dies: the name that is about to be called, and whether the model is there then.
STEPS = {
    "before the parameters": ("weightledger.ledger.store.append._name_parameters", False),
    "before the blobs": ("weightledger.ledger.store.append.store_blobs", False),
    "before the snapshot": ("weightledger.ledger.store.append.remember_snapshot", False),
    "after the commit": ("weightledger.ledger.projection.projector.Projector.adopt", True),
}


def register(url: str, step: str) -> None:
    with pytest.MonkeyPatch.context() as patch, Ledger.open(url) as ledger:
        patch.setattr(step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        ledger.model(MODEL, base=BASE)


@pytest.mark.parametrize(("step", "there"), STEPS.values(), ids=STEPS)
def test_a_kill_while_registering_leaves_all_or_nothing(
    database_url: str, step: str, there: bool
) -> None:
    Ledger.open(database_url).close()
    child = Children(1)
    assert child.run(register, (database_url, step)) == [None]
    child.end()
    with Ledger.open(database_url) as ledger:
        assert ledger.models() == ([MODEL] if there else [])
        log = ledger.model(MODEL, base=BASE)
        assert log.live.head.seq == 0
        assert torch.equal(log.state()["a"], BASE["a"])
        report = verify(log.history)
        assert (report.problem, report.events, report.snapshots) == (None, 1, 1)


# Blobs that are not what they were

SHORTER = "UPDATE blob_parts SET data = substr(data, 1, 100) WHERE length(data) > 1000"
LONGER = "UPDATE blob_parts SET data = data || data WHERE length(data) > 1000"
NO_PARTS = "DELETE FROM blob_parts WHERE length(data) > 1000"
NO_ROW = "DELETE FROM blobs WHERE size > 1000"


@pytest.mark.parametrize("damage", [SHORTER, LONGER, NO_PARTS, NO_ROW])
def test_a_blob_that_is_cut_or_gone_is_an_error_and_never_a_state(
    database_url: str, plain: Callable[[str], Any], damage: str
) -> None:
    with Ledger.open(database_url) as ledger:
        ledger.model(MODEL, base=BASE)
        plain(database_url).execute(damage)
        with pytest.raises(CorruptLedger) as caught:
            ledger.history(MODEL).state()
        assert caught.value.seq == 0
        report = verify(ledger.history(MODEL))
        assert (report.ok, report.bad_seq) == (False, 0)
        with pytest.raises(CorruptLedger):
            ledger.model(MODEL)
