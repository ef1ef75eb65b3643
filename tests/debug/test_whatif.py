"""What a model would be without some events: both modes, what they refuse, and adopting it."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.planned import Planned
from tests.rules.bridge import manager_in, network
from tests.rules.examples import activities_for
from weightledger import (
    Caller,
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    InvalidRequest,
    Ledger,
    Log,
    Plan,
    TorchEngine,
)
from weightledger.ledger.errors import CannotDerive, NotDefined, OperationDisabled
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import Updated, body_of
from weightledger.ledger.retention import collect
from weightledger.ledger.writing.policy import Policy
from weightledger.rules import RULES, DTESNDynamicIntegration, DTESNLearningConfig, get_rule

BASE: Mapping[str, torch.Tensor] = {
    "a": torch.linspace(-1, 1, 12).reshape(3, 4),
    "bf16": torch.linspace(-1, 1, 12).reshape(3, 4).to(torch.bfloat16),
    "wide": torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4),
}

NAMES = st.sampled_from(sorted(BASE))
VALUES = st.lists(st.floats(-2, 2, width=32), min_size=12, max_size=12)
RATES = st.sampled_from([0.0, 0.1, 1.0])


@st.composite
def requests(draw: st.DrawFn) -> IncrementalUpdateRequest:
    """One update of any type, in any of its forms."""
    name, rate = draw(NAMES), draw(RATES)
    kind = draw(st.sampled_from(["additive", "multiplicative", "replace"]))
    form = draw(st.sampled_from(["dense", "one number", "tensor", "sparse", "factors"]))
    values = draw(VALUES)
    if form == "factors":
        a, b = torch.tensor(values[:3]).reshape(3, 1), torch.tensor(values[:4]).reshape(1, 4)
        return IncrementalUpdateRequest(name, learning_rate=rate, factors={"a": a, "b": b})
    data: Any = values
    where = None
    if form == "one number":
        data = values[0]
    elif form == "tensor":
        data = torch.tensor(values).reshape(3, 4)
    elif form == "sparse":
        where = draw(st.lists(st.integers(0, 11), unique=True, min_size=1, max_size=5))
        data = values[: len(where)]
    return IncrementalUpdateRequest(name, data, rate, kind, indices=where)


WORK = st.lists(
    st.one_of(requests(), st.lists(requests(), min_size=2, max_size=3), st.just("roll back")),
    min_size=2,
    max_size=6,
)


def do(log: Log, work: Any) -> Any:
    if work == "roll back":
        return log.rollback("head~1") if log.live.head.node else None
    return log.apply_batch(work) if isinstance(work, list) else log.apply(work)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ledger(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ledger]:
    """One for all histories, each of which is a model of its own."""
    from tests.conftest import new_database

    folder = tmp_path_factory.mktemp("what-if")
    with new_database(request, request.param, folder) as url, Ledger.open(url) as opened:
        yield opened


def histories(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
        deadline=None,
    )


@histories(20)
@given(work=WORK, place=st.integers(0, 5))
def test_causal_replay_comes_to_the_recorded_bits_and_deletion_to_a_run_that_never_had_it(
    ledger: Ledger, work: list[Any], place: int
) -> None:
    replays_and_deletes(ledger, work, place)


@pytest.mark.soak
@histories(300)
@given(work=WORK, place=st.integers(0, 5))
def test_so_it_does_over_many_histories(ledger: Ledger, work: list[Any], place: int) -> None:
    replays_and_deletes(ledger, work, place)


def replays_and_deletes(ledger: Ledger, work: list[Any], place: int) -> None:
    number = len(ledger.models())
    log = ledger.model(f"with-{number}", base=dict(BASE))
    events = [do(log, one) for one in work]
    alive = set(_way(log))
    updates = [at for at, one in enumerate(events) if one is not None and one.seq in alive]
    if not updates:
        return
    gone = updates[place % len(updates)]
    found = log.what_if([events[gone].name], mode="causal")  # checks every digest on its way
    assert found.actual.digest.value == log.live.state.value
    without = ledger.model(f"without-{number}", base=dict(BASE))
    for at in updates:
        if at != gone:
            do(without, work[at])
    assert found.state.digest.value == without.live.state.value
    assert found.derived == len([at for at in updates if at > gone])


def _way(log: Log) -> Iterator[int]:
    node: int | None = log.live.head.node
    while node:
        yield node
        node = log.history.lineage.parent(node)


def small(tmp_path: Path, **options: Any) -> tuple[Ledger, Log]:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    return ledger, ledger.model("m", base={"w": torch.zeros(8), "v": torch.ones(4)}, **options)


def add(log: Log, indices: list[int], value: float = 1.0, name: str = "w", **more: Any) -> str:
    data = [value] * len(indices)
    return log.apply(IncrementalUpdateRequest(name, data, 1.0, indices=indices, **more)).name


def test_mechanical_takes_the_difference_out_where_nothing_touched_it_again(tmp_path: Path) -> None:
    ledger, log = small(tmp_path)
    with ledger:
        first = add(log, [0, 1])
        add(log, [2, 3])
        add(log, [0], 5.0, name="v")
        found = log.what_if([first])
        assert found.state.weights["w"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
        assert found.state.weights["v"].tolist() == [6, 1, 1, 1]
        assert found.to_json()["changed"][0]["changed"] == 2
        again = add(log, [1, 4])
        with pytest.raises(NotDefined, match=f"touched again by {again}, so"):
            log.what_if([first])
        # Without both it is defined, and an event that never was is no part of it.
        assert log.what_if([first, again]).state.weights["w"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
        assert log.what_if([first], mode="causal").state.weights["w"].tolist() == [
            *(0, 1, 1, 1, 1, 0, 0, 0)
        ]


def test_both_modes_agree_where_both_are_defined(tmp_path: Path) -> None:
    ledger, log = small(tmp_path)
    with ledger:
        first = add(log, [0, 1], 0.3)
        add(log, [2, 3], 0.1)
        one, other = (log.what_if([first], mode=mode).state for mode in ("mechanical", "causal"))
        assert one.digest.value == other.digest.value != log.live.state.value


def test_causal_names_an_event_of_which_gc_dropped_what_it_stored(tmp_path: Path) -> None:
    ledger, log = small(tmp_path)
    with ledger:
        log.create_initial_version()
        first = add(log, [0])
        tensors = {"adapter/a/A": torch.ones(2), "adapter/a/config": torch.zeros(2).byte()}
        plan = Plan({"operation": "load_adapter", "adapter": "a"}, {}, tensors, "adapter_loaded")
        loaded = log.execute(Planned(lambda staged: plan))
        log.rollback(first)
        hours_later = time.time_ns() // 1000 + 7_200_000_000
        log.snapshot()
        assert collect(log.history, dry_run=False, now_us=lambda: hours_later).pruned == 1
        with pytest.raises(CannotDerive, match=f"{loaded.name} cannot .* gc dropped what it"):
            log.what_if([first], to=loaded.name, mode="causal")


def test_causal_loads_whole_adapters_whatever_was_there_before(tmp_path: Path) -> None:
    """What an adapter shares with the one in whose place it came is not among its changes."""
    ledger, log = small(tmp_path)
    config, one, two = torch.zeros(2).byte(), torch.ones(2), torch.full((2,), 2.0)

    def adapter(kind: str, **tensors: torch.Tensor | None) -> str:
        facts = {"operation": kind, "adapter": "a", "replaced": "adapter/a/A" in log.state()}
        moved = {f"adapter/a/{key}": tensor for key, tensor in tensors.items()}
        return log.execute(Planned(lambda _: Plan(facts, {}, moved, kind))).name

    def without(*names: str) -> dict[str, list[float]]:
        found = log.what_if(names, mode="causal").state.tensors.items()
        return {name[10:]: one.tolist() for name, one in found if name.startswith("adapter/")}

    with ledger:
        first = adapter("adapter_loaded", A=one, config=config)
        again = adapter("adapter_loaded", A=two, config=config)
        assert without(first) == {"A": [2, 2], "config": [0, 0]}
        gone = adapter("adapter_unloaded", A=None, config=None)
        adapter("adapter_loaded", B=one, config=config)
        assert without(gone) == without(first, again) == {"B": [1, 1], "config": [0, 0]}


def test_events_are_named_by_who_wrote_them_and_from_when_on(tmp_path: Path) -> None:
    ledger, log = small(tmp_path)
    with ledger:
        for number in range(4):
            add(log, [number], actor="mallory" if number % 2 else "alice")
        found = log.what_if(["actor:mallory"])
        assert found.state.weights["w"][:4].tolist() == [1, 0, 1, 0]
        found = log.what_if(["actor:mallory"], only_after="update_2", mode="causal")
        assert found.state.weights["w"][:4].tolist() == [1, 1, 1, 0]
        with pytest.raises(InvalidRequest, match="none of actor:bob"):
            log.what_if(["actor:bob"])
        # Adapters are somebody's work as well.
        beside = {"adapter/a/A": torch.ones(2), "adapter/a/config": torch.zeros(2).byte()}
        plan = Plan({"operation": "load_adapter", "adapter": "a"}, {}, beside, "adapter_loaded")
        log.execute(Planned(lambda staged: plan, Caller(actor="bob")))
        for mode in ("mechanical", "causal"):
            found = log.what_if(["actor:bob"], mode=mode)
            assert found.state.digest.value == log.history.require(4).state_after


def test_what_is_no_part_of_a_state_cannot_be_left_out(tmp_path: Path) -> None:
    ledger, log = small(tmp_path)
    with ledger:
        gone = add(log, [0])
        log.rollback("head~1")
        later = add(log, [1])
        for names, words in (
            ([gone], "was rolled back"),
            (["seq:0"], "no update that could be left out"),
            (["seq:2"], "no update that could be left out"),
            ([], "say which events"),
            (later, "must be a list of events"),
        ):
            with pytest.raises(InvalidRequest, match=words):
                log.what_if(names)
            with pytest.raises(InvalidRequest, match=words):
                log.adopt_what_if(names)
        with pytest.raises(InvalidRequest, match="came later"):
            log.what_if([later], to=gone)
        with pytest.raises(InvalidRequest, match="mechanical or causal"):
            log.what_if([later], mode="magical")  # type: ignore[arg-type]


def test_causal_refuses_and_names_the_first_event_that_cannot_be_worked_out_again(
    tmp_path: Path,
) -> None:
    ledger, log = small(tmp_path)
    with ledger:
        first = add(log, [0])
        outside = log.record({"w": torch.full((8,), 2.0), "v": torch.ones(4)}).name
        add(log, [1])
        with pytest.raises(CannotDerive, match=rf"{outside} .* came ready from elsewhere"):
            log.what_if([first], mode="causal")
        assert body_of(log.history.event(outside), Updated).operands.where is None


def test_the_policy_says_which_operands_are_kept(tmp_path: Path) -> None:
    large = torch.full((200, 200), 0.5)
    kept = {}
    for policy in ("small", "all", "none"):
        folder = tmp_path / policy
        folder.mkdir()
        with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
            log = ledger.model(
                "m", base={"w": torch.zeros(200, 200)}, policy=Policy(operands=policy)
            )
            small_one = log.apply(IncrementalUpdateRequest("w", 0.25))
            big = log.apply(IncrementalUpdateRequest("w", large))
            kept[policy] = [body_of(one, Updated).operands.where for one in (small_one, big)]
            if policy == "all":
                found = log.what_if([small_one.name], mode="causal")
                assert torch.equal(found.state.weights["w"], large * 0.01)
                # A blob of operands is referred to: gc keeps it, and verify reads past it.
                assert log.gc(dry_run=True).blobs == 0
            else:
                with pytest.raises(CannotDerive, match="keep_operands"):
                    log.what_if([small_one.name], mode="causal")
            assert log.verify().ok
    assert kept == {
        "small": ["payload", None],
        "all": ["payload", "blobs"],
        "none": [None, None],
    }


def test_a_what_if_is_adopted_by_an_ordinary_event_that_says_what_it_is(tmp_path: Path) -> None:
    ledger, log = small(tmp_path)
    with ledger:
        first = add(log, [0, 1])
        add(log, [1, 2], 0.5)
        found = log.what_if([first], mode="causal")
        event = log.adopt_what_if([first], mode="causal")
        assert event.state_after == found.state.digest.value == log.live.state.value
        assert (event.kind, event.body["operation"]) == ("updated", "what_if")
        assert (event.body["mode"], event.body["without"]) == ("causal", [first])
        note = log.history.store.annotation(event.seq)
        assert note.reason == f"what-if (causal): head without {first}"
        assert log.verify().ok
        log.rollback("head~1")
        assert log.live.state.value == found.actual.digest.value
        ledger.close()
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as again:
        frozen = again.model("m", policy=Policy(updates=False))
        with pytest.raises(OperationDisabled):
            frozen.adopt_what_if([first])


def lesson(integration: DTESNDynamicIntegration, rule: str, seed: int, to: str) -> Event:
    """The same call for whoever makes it: what a rule learns from activities of a seed."""
    kind = get_rule(rule)
    weight = integration.dynamic_manager.log.state()[to]
    activities = activities_for(kind, weight, {"out": 3, "in": 5, "batch": 6, "time": 6}, seed)
    if "delta" in activities:
        activities["delta"] *= 1e-3  # a guard refuses long steps
    rate = 1e-5 if "learning_rate" in kind.__dataclass_fields__ else None
    return asyncio.run(integration.calls.learn(to, activities, rule=rule, learning_rate=rate))


def lessons(integration: DTESNDynamicIntegration, rule: str, seeds: list[int]) -> list[str]:
    to = "2.bias" if get_rule(rule).parameter == ("out",) else "2.weight"
    events = [lesson(integration, rule, seed, to) for seed in seeds]
    assert {event.kind for event in events} == {"updated"}
    return [event.name for event in events]


class Everything(torch.nn.Module):
    """Parameters for updates of every type and dtype, and for every rule."""

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in BASE.items():
            self.register_parameter(name, torch.nn.Parameter(tensor.clone()))
        self.weight = torch.nn.Parameter(torch.linspace(-0.3, 0.3, 15).reshape(3, 5))
        self.bias = torch.nn.Parameter(torch.linspace(-0.2, 0.2, 3))


ANYTHING = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(sorted(RULES)), st.integers(1, 9)),
        requests(),
        st.lists(requests(), min_size=2, max_size=3),
        st.just("roll back"),
    ),
    min_size=3,
    max_size=8,
)


@histories(5)
@given(work=ANYTHING, place=st.integers(0, 7))
def test_what_rules_learnt_among_updates_is_worked_out_again(
    ledger: Ledger, work: list[Any], place: int
) -> None:
    learns_again(ledger, work, place)


@pytest.mark.soak
@histories(250)
@given(work=ANYTHING, place=st.integers(0, 7))
def test_so_it_is_over_many_histories(ledger: Ledger, work: list[Any], place: int) -> None:
    learns_again(ledger, work, place)


def learns_again(ledger: Ledger, work: list[Any], place: int) -> None:
    """To the recorded bits with all events; without one, to those of a run that never had it."""
    with pupil(ledger, "all") as integration:
        log = integration.dynamic_manager.log
        events = [taught(integration, one) for one in work]
        alive = set(_way(log))
        kept = [at for at, one in enumerate(events) if one is not None and one.seq in alive]
        if not kept:
            return
        from_the_first = log.what_if([events[kept[0]].name], mode="causal")
        assert from_the_first.actual.digest.value == log.live.state.value
        gone = kept[place % len(kept)]
        found = log.what_if([events[gone].name], mode="causal")
    with pupil(ledger, "without") as integration:
        for at in kept:
            if at != gone:
                taught(integration, work[at])
        assert found.state.digest.value == integration.dynamic_manager.log.live.state.value


@contextlib.contextmanager
def pupil(ledger: Ledger, name: str) -> Iterator[DTESNDynamicIntegration]:
    """A model of its own that learns."""
    with tempfile.TemporaryDirectory() as folder:
        config = DynamicUpdateConfig(backup_dir=Path(folder))
        named = f"{name}-{len(ledger.models())}"
        engine = TorchEngine(Everything())
        manager = DynamicModelManager(engine, named, config=config, ledger=ledger)
        with contextlib.closing(manager):
            yield DTESNDynamicIntegration(dynamic_manager=manager)


def taught(integration: DTESNDynamicIntegration, work: Any) -> Event | None:
    if isinstance(work, tuple):
        rule, seed = work
        to = "bias" if get_rule(rule).parameter == ("out",) else "weight"
        return lesson(integration, rule, seed, to)
    return do(integration.dynamic_manager.log, work)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_learns_again_to_the_bit(rule: str, tmp_path: Path) -> None:
    """And without one lesson it comes to what it would have come to, rule's state included."""
    states = []
    for name, seeds in (("with", [1, 2, 3, 4]), ("without", [1, 3, 4])):
        manager = manager_in(tmp_path / name)
        try:
            integration = DTESNDynamicIntegration(dynamic_manager=manager)
            ids = lessons(integration, rule, seeds)
            log = manager.log
            if name == "with":
                found = log.what_if([ids[1]], mode="causal")
                assert found.actual.digest.value == log.live.state.value
                states.append(found.state.digest.value)
                assert found.derived == 2
            else:
                states.append(log.live.state.value)
        finally:
            manager.close()
    assert states[0] == states[1]


def test_selection_reservoirs_consolidation_and_forgetting_are_worked_out_again(
    tmp_path: Path,
) -> None:
    states = []
    for name in ("with", "without"):
        manager = manager_in(tmp_path / name)
        try:
            config = DTESNLearningConfig(reservoir_size=5)
            integration = DTESNDynamicIntegration(dynamic_manager=manager, dtesn_config=config)
            calls = integration.calls

            def update(seed: int, change: float, calls: Any = calls) -> str:
                drawn = torch.Generator().manual_seed(seed)
                step = torch.rand(3, 5, generator=drawn)
                context = {"accuracy_change": change, "latency_change": 1.0}
                work = calls.update("2.weight", step, performance_context=context)
                return str(asyncio.run(work).name)

            update(1, 0.2)
            left_out = update(2, -0.3) if name == "with" else None
            drawn = torch.Generator().manual_seed(3)
            inputs, target = torch.rand(7, 2, generator=drawn), torch.rand(7, 3, generator=drawn)
            asyncio.run(calls.learn_readout("2.weight", inputs, target, rule="lms", stream="r"))
            gradient = torch.rand(4, 3, 5, generator=drawn)
            log = manager.log
            asyncio.run(integration.update_fisher_information("2.weight", None, gradient))
            asyncio.run(
                integration.consolidate_important_parameters("2.weight", consolidation_threshold=0)
            )
            update(4, 0.1)
            asyncio.run(calls.forget("2.weight", "r", Caller()))
            if left_out is not None:
                states.append(log.what_if([left_out], mode="causal").state.digest.value)
            else:
                states.append(log.live.state.value)
        finally:
            manager.close()
    assert states[0] == states[1]


def test_the_settings_switch_reaches_the_log(tmp_path: Path) -> None:
    config = DynamicUpdateConfig(backup_dir=tmp_path, keep_operands="none")
    manager = DynamicModelManager(TorchEngine(network()), "net", config=config)
    event = manager.log.apply(IncrementalUpdateRequest("2.bias", 0.5))
    assert body_of(event, Updated).operands.why == "switched_off"
    manager.close()
    with pytest.raises(InvalidRequest, match="small, all or none"):
        DynamicUpdateConfig(keep_operands="some")  # type: ignore[arg-type]
