"""Random histories of adapters beside plain arrays: what is served, what states hold, and what the
history is asked is what PEFT and a program that has nothing but arrays come to."""

import random
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch

from tests.debug.adapted import KINDS, Adapted, Family, weights
from tests.debug.arrays import (
    Truth,
    blamed,
    compared,
    left_out,
    rebuilt,
    searched,
    shown,
    states_and_names,
)
from tests.debug.families import FAMILIES, family
from tests.text_models import tokenizer
from weightledger import Ledger, Log
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.errors import CannotDerive


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One intra-op thread, as bits are compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    return cache(lambda name: family(name, tmp_path_factory.mktemp(name)))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize(("name", "seed"), [("gpt2", 2), ("opt", 4)])
def test_histories_of_adapters_are_what_arrays_say(
    families: Callable[[str], Family], database_url: str, name: str, seed: int
) -> None:
    history(families(name), database_url, seed, steps=20)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(100, 120))
def test_so_are_many_and_longer_ones(
    families: Callable[[str], Family], database_url: str, name: str, seed: int
) -> None:
    history(families(name), database_url, seed, steps=50)


def history(family: Family, url: str, seed: int, steps: int) -> None:
    """Two logs of one model write in turns, of which each finds out late what the other wrote."""
    random_ = random.Random(seed)
    kinds = KINDS if seed % 2 else tuple(kind for kind in KINDS if kind != "record")
    with Ledger.open(url) as ledger, Ledger.open(url) as beside:
        logs = [
            one.model("tiny", engine=TransformersEngine(family.base(), tokenizer()), alpha=0.5)
            for one in (ledger, beside)
        ]
        known = Adapted(family, Truth({0: shown(logs[0])}))
        for _ in range(steps):
            log = random_.choice(logs)
            known.step(log, random_, kinds)
            if random_.random() < 0.2:
                known.shows(log)
                log.snapshot()
        for log in logs:
            log.catch_up()
            known.shows(log)
        asked(logs[0], known, random_)
    with Ledger.open(url) as ledger:
        log = ledger.model("tiny", engine=TransformersEngine(family.base(), tokenizer()))
        assert shown(log) == known.state
        known.shows(log)


def asked(log: Log, known: Adapted, random_: random.Random) -> None:
    truth = known.truth
    states_and_names(log, truth)
    for _ in range(6):
        compared(log, truth, random_)
        left_out(log, truth, random_)
        worked_out_again(log, known, random_)
        searched(log, truth, random_)
    beside = {full for one in truth.states.values() for full in one if full.startswith("adapter/")}
    small = [one for one in weights(known.state) if len(known.state[one].bits) < 64]
    for full in random_.sample(sorted(beside), min(len(beside), 2)) + random_.sample(small, 1):
        blamed(log, truth, full)
    assert verify(log.history).problem is None


def worked_out_again(log: Log, known: Adapted, random_: random.Random) -> None:
    """A causal what-if is the history that never had some events."""
    at = random_.choice(known.truth.seqs)
    way = known.truth.way(at)[1:]
    if not way:
        return
    out = random_.sample(way, min(len(way), random_.randint(1, 2)))
    expected = known.derived(at, out)
    names = [f"seq:{seq}" for seq in out]
    if expected is None:
        with pytest.raises(CannotDerive):
            log.what_if(names, to=f"seq:{at}", mode="causal")
    else:
        found = log.what_if(names, to=f"seq:{at}", mode="causal")
        assert rebuilt(found.state.tensors) == expected
