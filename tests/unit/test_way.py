"""How far it is to the nearest anchor is known without asking, whoever wrote what is between."""

import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.projection import anchoring
from weightledger.ledger.projection.anchoring import way_to_anchor

NAMES = ["a", "b"]
SPACING = 60_000
LARGEST = 6_000  # an event and what reading it costs


@pytest.fixture
def logs(database_url: str) -> Iterator[list[Log]]:
    with ExitStack() as opened:
        ledgers = [opened.enter_context(Ledger.open(database_url)) for _ in range(3)]
        base = {name: torch.zeros(64) for name in NAMES}
        yield [ledger.model("m", base=base) for ledger in ledgers]


def one(random_: random.Random) -> IncrementalUpdateRequest:
    values = torch.rand(64, generator=torch.Generator().manual_seed(random_.randrange(2**31)))
    return IncrementalUpdateRequest(random_.choice(NAMES), values)


def something(log: Log, random_: random.Random) -> None:
    match random_.randrange(12):
        case 0:
            versions = log.versions()
            if versions:
                log.rollback(random_.choice(versions).version_id)
        case 1:
            log.create_version("somewhere")
        case 2:
            log.apply_batch([one(random_) for _ in range(3)])
        case 3:
            log.catch_up()
        case _:
            log.apply(one(random_))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_as_far_as_the_lineage_says(logs: list[Log], seed: int) -> None:
    random_ = random.Random(seed)
    straight = 0
    for _ in range(80):
        log = random_.choice(logs)
        something(log, random_)
        anchors, node = log._anchoring, log.live.head.node
        straight += anchors._projector.way.node == node
        assert anchors._distance() == way_to_anchor(log.history, node)
    assert straight > 40, "it is not measured each time"


def test_no_state_is_far_from_an_anchor(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchoring, "MIN_SPACING_BYTES", SPACING)
    random_ = random.Random(1)
    with ExitStack() as opened:
        ledgers = [opened.enter_context(Ledger.open(database_url)) for _ in range(3)]
        base = {name: torch.zeros(64) for name in NAMES}
        logs = [ledger.model("m", base=base) for ledger in ledgers]
        for _ in range(120):
            log = random_.choice(logs)
            log.apply(one(random_))
            seen = way_to_anchor(log.history, log.live.head.node)
            assert seen < SPACING * 1.25 + LARGEST
        assert 5 < len(list(log.history.store.snapshots())) < 30
