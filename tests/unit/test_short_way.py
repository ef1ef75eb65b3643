"""The short way of a small update and the long one: equal headers, bits and digests."""

import itertools
import math
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.errors import InvalidRequest, LedgerError
from weightledger.ledger.projection.change import Change
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.writing import handlers
from weightledger.ledger.writing.policy import Policy, Verdict
from weightledger.ledger.writing.short_way import proposed_at_once
from weightledger.ledger.writing.update_commands import ApplyUpdates

NUMBERS = st.floats(-9, 9) | st.sampled_from([-0.0, 3e38, -3e38, 1e-45, math.inf, math.nan])
NAMES = st.sampled_from(["w", "w", "w", "one", "wide", "half", "great"])
ROW = handlers._ROWS[ApplyUpdates]
NOW = 1_700_000_000_000_000_000


def base() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "w": torch.randn(4, 3),
        "one": torch.randn(()),
        "half": torch.randn(4, 3, dtype=torch.bfloat16),
        "wide": torch.randn(12).mul(1e38),
        "great": torch.randn(260, 256),  # of more than one chunk
    }


class Ways:
    """A log that takes the short way where there is one, and one that never does."""

    def __init__(self, folder: Path, policy: Policy) -> None:
        self.taken = 0
        self._open = ExitStack()
        self.short, self.long = (self._log(f"sqlite:///{folder}/{n}.db", policy) for n in "sl")

    def _log(self, url: str, policy: Policy) -> Log:
        ledger = self._open.enter_context(Ledger.open(url))
        return ledger.model("m", base=base(), policy=policy)

    def close(self) -> None:
        self._open.close()

    def both(self, act: Callable[[Log], Any]) -> list[Any]:
        """What comes of it on either way: facts of the event, or the error's."""

        def counted(command: ApplyUpdates, staged: Any) -> Any:
            found = proposed_at_once(command, staged)
            self.taken += found is not None
            return found

        outcomes = []
        for log, at_once in ((self.short, counted), (self.long, None)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(handlers._ROWS, ApplyUpdates, replace(ROW, at_once=at_once))
                try:
                    act(log)
                    outcomes.append(facts(log))
                except LedgerError as error:
                    outcomes.append((type(error), str(error), *facts(log)))
        return outcomes


def facts(log: Log) -> tuple[Any, ...]:
    """All that there is of the last event, and what is live."""
    head, store = log.history.head(), log.history.store
    live = {name: lanes(log.engine.tensor(name)).tobytes() for name in log.specs}
    return head.header, head.hash, store.payload(head), store.annotation(head.seq), live


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ways]]:
    """Makes pairs of logs, by their policy, whose clock stands and whose salts are known."""
    monkeypatch.setattr(time, "time_ns", lambda: NOW)
    monkeypatch.setattr(secrets, "token_bytes", bytes)
    made: list[Ways] = []

    def of(policy: Policy | None = None) -> Ways:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Ways(folder, policy or Policy()))
        return made[-1]

    yield of
    for one in made:
        one.close()


def update(data: Any, name: str = "w", **options: Any) -> Callable[[Log], Any]:
    return lambda log: log.apply(IncrementalUpdateRequest(name, data, **options))


@st.composite
def requests(draw: st.DrawFn) -> IncrementalUpdateRequest:
    name = draw(NAMES)
    shape = base()[name].shape
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    operand = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    operand = operand.to(dtype)
    for at in draw(st.lists(st.integers(0, operand.numel() - 1), max_size=1)):
        operand.view(-1)[at] = draw(NUMBERS)
    form = draw(st.sampled_from(["whole", "flat", "number", "turned", "listed"]))
    data: Any = {
        "whole": operand,
        "flat": operand.reshape(-1),
        "number": draw(st.floats(-4, 4)),
        "turned": operand.mT.contiguous().mT if operand.dim() > 1 else operand,
        "listed": operand.tolist() if operand.numel() < 99 else operand,
    }[form]
    return IncrementalUpdateRequest(
        name,
        data,
        learning_rate=draw(st.sampled_from([0.5, 1e-6, 1.0, 0.1, 0.0, 2.0**-150, 2.0**-149])),
        update_type=draw(st.sampled_from(["additive", "additive", "multiplicative", "replace"])),
        actor=draw(st.sampled_from([None, "ana"])),
        metadata=draw(st.sampled_from([None, {"why": 1}])),
        idempotency_key=draw(st.sampled_from([None, "k"])),
    )


def both_ways_are_equal(ways: Ways, *, count: int) -> None:
    """So many random requests, one after the other."""
    number = itertools.count()

    @settings(deadline=None, max_examples=count)
    @given(request=requests())
    def equal(request: IncrementalUpdateRequest) -> None:
        keyed = replace(request, idempotency_key=request.idempotency_key and f"k{next(number)}")
        short, long = ways.both(lambda log: log.apply(keyed))
        assert short == long

    equal()
    assert ways.taken > 10


def test_both_ways_lead_to_equal_logs(opened: Callable[..., Ways]) -> None:
    both_ways_are_equal(opened(), count=200)


@pytest.mark.parametrize("data", [torch.ones(4, 3), torch.ones(12).double(), torch.tensor(2.0)])
def test_usual_updates_take_the_short_way(opened: Callable[..., Ways], data: torch.Tensor) -> None:
    ways = opened()
    short, long = ways.both(update(data))
    assert short == long
    assert ways.taken == 1


class Judges:
    """A guard that measures what it is shown, and refuses what grows too large; with `alone` one
    that is for the long way."""

    def __init__(self, *, alone: bool = False) -> None:
        self.alone = alone

    def current(self) -> dict[str, float]:
        return {}

    def __call__(self, change: Change) -> Verdict:
        most = max([float(new.tensor.abs().max()) for new in change.weights.values()], default=0.0)
        return Verdict(
            {"before": 0.0},
            {"most": most},
            f"{most} is too much" if not most < 4 else None,
            {"said": len(change.weights)},
            evaluated=most > 2,
        )


class Measures(Judges):
    """One that refuses nothing, and fails on some."""

    def __call__(self, change: Change) -> Verdict:
        found = super().__call__(change)
        if found.post_metrics["most"] > 100:
            raise InvalidRequest("that is for nobody to judge")
        return replace(found, reason=None)


@pytest.mark.parametrize("guard", [Judges(), Measures()])
def test_a_guard_is_asked_whichever_way(opened: Callable[..., Ways], guard: Judges) -> None:
    both_ways_are_equal(opened(Policy(guard=guard)), count=100)


def test_a_guard_that_looks_at_the_candidate_takes_the_long_way(
    opened: Callable[..., Ways],
) -> None:
    ways = opened(Policy(guard=Judges(alone=True)))
    short, long = ways.both(update(torch.ones(4, 3)))
    assert short == long
    assert ways.taken == 0


class Interrupted(Judges):
    """One that somebody interrupts."""

    went_on = False

    def __call__(self, change: Change) -> Verdict:
        signal.raise_signal(signal.SIGINT)
        self.went_on = True
        return super().__call__(change)


@pytest.mark.parametrize("alone", [False, True])
def test_a_guard_is_interrupted_at_once_whichever_way(
    opened: Callable[..., Ways], *, alone: bool
) -> None:
    guard = Interrupted(alone=alone)
    log = opened(Policy(guard=guard)).short
    with pytest.raises(KeyboardInterrupt):
        update(torch.ones(4, 3))(log)
    assert not guard.went_on
    assert log.history.head().seq == 0


@pytest.mark.parametrize("kept", ["none", "small", "all"])
def test_operands_are_kept_as_the_policy_says(opened: Callable[..., Ways], kept: Any) -> None:
    ways = opened(Policy(operands=kept))
    for data in (torch.ones(4, 3), torch.ones(12)):
        short, long = ways.both(update(data))
        assert short == long
    short, long = ways.both(update(torch.ones(260, 256), "great"))
    assert short == long
    assert ways.taken == (0 if kept == "none" else 2)


def test_what_was_written_outside_is_noticed_on_either_way(opened: Callable[..., Ways]) -> None:
    ways = opened()
    for log in (ways.short, ways.long):
        log.engine.tensor("w").numpy()[0, 0] += 1  # past torch's counter
    short, long = ways.both(update(torch.ones(4, 3)))
    assert short == long
    assert "changed without the ledger: w" in short[1]
    for log in (ways.short, ways.long):
        log.engine.tensor("one").add_(1)  # beside what the update names
    short, long = ways.both(update(torch.ones(4, 3)))
    assert short == long
    assert "changed without the ledger" in short[1]
