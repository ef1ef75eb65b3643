"""A ledger that is written, and replicas that follow it, in this process."""

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.conftest import copy_of
from tests.waiting import until
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.fleet.follower import Follower

MODEL = "m"


def base() -> torch.nn.Module:
    """The same small model each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Linear(8, 4)


def make(url: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.model(MODEL, base=base())


@pytest.fixture
def fleet_url(request: pytest.FixtureRequest, database_kind: str, tmp_path) -> Iterator[str]:
    with copy_of(request, make, database_kind, tmp_path) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def log(fleet_url: str) -> Iterator[Log]:
    """The writer's."""
    with Ledger.open(fleet_url) as ledger:
        yield ledger.model(MODEL)


Follow = Callable[..., Follower]


@pytest.fixture
def follow(fleet_url: str) -> Iterator[Follow]:
    """Makes replicas, each with a ledger of its own; closed at the end."""
    made: list[tuple[Ledger, Follower]] = []

    def start(replica: str = "r1", **options) -> Follower:
        ledger = Ledger.open(fleet_url, upgrade=False, connections=2)
        try:
            follower = ledger.follow(MODEL, replica=replica, **options)
        except BaseException:
            ledger.close()
            raise
        made.append((ledger, follower))
        return follower

    yield start
    for ledger, follower in made:
        follower.close()
        ledger.close()


def update(log: Log, value: float = 1.0) -> int:
    return log.apply(IncrementalUpdateRequest("bias", value)).seq


def until_shown(follower: Follower, seq: int) -> None:
    until(lambda: follower.live.head.seq >= seq, f"event {seq} is not shown")
