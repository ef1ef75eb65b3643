"""How large the changes of an event are."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from weightledger import Ledger, Log
from weightledger.ledger.debug.drawn import spread_picture
from weightledger.ledger.debug.spread import spread


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        yield ledger.model("m", base={"w": torch.zeros(6), "n": torch.zeros(2, dtype=torch.int64)})


def test_elements_are_counted_by_the_size_of_their_change(log: Log) -> None:
    changed = torch.tensor([0.002, -0.002, 0.05, 2.0, 0.0, math.inf])
    event = log.record({"w": changed, "n": torch.tensor([0, 5])})
    steps = spread(log.history, event)
    assert sum(step.elements for step in steps) == 5
    for least, most, count in ((0.002, 0.002, 2), (0.05, 0.05, 1), (2.0, 2.0, 1), (5.0, 5.0, 1)):
        (step,) = [one for one in steps if one.least <= least and most < one.most]
        assert step.elements == count
    assert [one.least for one in steps[1:]] == [one.most for one in steps[:-1]]
    assert spread_picture(steps).count("<rect") == len(steps)


def test_what_changes_no_numbers_has_no_sizes(log: Log) -> None:
    assert spread(log.history, log.history.require(0)) == []
    log.record({"w": torch.ones(6), "n": torch.zeros(2, dtype=torch.int64)})
    assert spread(log.history, log.create_version("named")) == []
    assert spread(log.history, log.rollback("seq:0")) == []
