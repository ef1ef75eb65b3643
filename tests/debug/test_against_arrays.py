"""Random logs, each state of which is kept beside as plain arrays: what the history is asked is
what a program finds out that has nothing but these."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.debug.arrays import (
    Bits,
    Truth,
    blamed,
    compared,
    left_out,
    searched,
    shown,
    states_and_names,
)
from tests.planned import Planned
from weightledger import IncrementalUpdateRequest, Ledger, Log, Plan
from weightledger.ledger.tensors.lanes import lanes

BASE = {
    "w": torch.linspace(-1, 1, 6).reshape(2, 3),
    "half": torch.linspace(-1, 1, 5).to(torch.bfloat16),
    "eighth": torch.linspace(-1, 1, 4).to(torch.float8_e4m3fn),
    "count": torch.tensor([1, -2, 1 << 60]),
    "one": torch.tensor(1.5),
    "odd [x]*?é": torch.zeros(2, dtype=torch.float64),
    "none": torch.zeros(0, 3),
}
TRACE = "rule/w/main/trace"
SHAPES = ((2, 2), (4,), (0,), (0, 2), ())


def build(log: Log, random_: random.Random, steps: int) -> Truth:
    """Updates of every form, recordings of random bits, tensors beside the weights that come, go
    and change their shape, rollbacks to anywhere, names."""
    truth = Truth({0: shown(log)})
    for _ in range(steps):
        what = random_.choice(["record", "update", "update", "beside", "beside", "back", "name"])
        if what == "name":
            event = log.create_version("named")
            truth.versions |= {0: 0} if not truth.versions else {}
            truth.versions[int(event.number or 0)] = truth.head
            continue
        if what == "back":
            to = random_.choice(truth.seqs)
            seq = log.rollback(f"seq:{to}").seq
            truth.led_to[seq], truth.left[seq] = truth.node(to), truth.head
            truth.head = truth.node(to)
        else:
            seq = {"record": record, "update": update, "beside": beside}[what](log, random_)
            truth.parents[seq], truth.head = truth.head, seq
        truth.states[seq] = shown(log)
        if random_.random() < 0.2:
            log.snapshot()
    return truth


def record(log: Log, random_: random.Random) -> int:
    """Random bits in some elements: NaNs of every kind, infinities, denormals."""
    source = {name: log.state()[name].clone() for name in BASE}
    for name in random_.sample(sorted(set(BASE) - {"none"}), random_.randint(0, 2)):
        bytes_ = lanes(source[name]).view(np.uint8)
        at = random_.randrange(len(bytes_))
        bytes_[at:] = np.frombuffer(random_.randbytes(len(bytes_) - at), np.uint8)
    return log.record(source).seq


def update(log: Log, random_: random.Random) -> int:
    name, value = (
        random_.choice(["w", "half", "one", "odd [x]*?é"]),
        random_.choice([0.0, 0.5, 2.0]),
    )
    kind = random_.choice(["additive", "multiplicative", "replace"])
    indices = None if name == "one" or random_.random() < 0.3 else [random_.randrange(2)]
    request = IncrementalUpdateRequest(name, value, 1.0, kind, indices=indices)
    event = log.apply(request)
    return event.seq if event.kind == "updated" else beside(log, random_)


def beside(log: Log, random_: random.Random) -> int:
    shape, dtype = random_.choice(SHAPES), random_.choice([torch.float32, torch.int32])
    gone = TRACE in log.live.auxiliary and random_.random() < 0.3
    value = None if gone else torch.full(shape, random_.choice([0, 0, 1]), dtype=dtype)
    event = log.execute(Planned(lambda staged: Plan({"operation": "t"}, {}, {TRACE: value})))
    assert shown(log).get(TRACE) == (None if value is None else Bits.of(value))
    return event.seq


SEEDS = range(3)


@pytest.fixture(params=SEEDS)
def made(request: pytest.FixtureRequest, database_url: str) -> Iterator[tuple[Log, Truth]]:
    with Ledger.open(database_url) as ledger:
        log = ledger.model("m", base=BASE, alpha=0.5)
        yield log, build(log, random.Random(request.param), 32)


def test_what_the_history_says_is_what_arrays_say(made: tuple[Log, Truth]) -> None:
    log, truth = made
    random_ = random.Random(99)
    states_and_names(log, truth)
    for _ in range(12):
        compared(log, truth, random_)
        left_out(log, truth, random_)
        searched(log, truth, random_)
    for name in (*BASE, TRACE):
        blamed(log, truth, name)
