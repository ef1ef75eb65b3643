"""What a forward writes into its own module is its reader's own: requests never meet there."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conformance.engine_models import KINDS
from tests.conformance.scratch_models import HIDDEN, SCRATCH, WIDTH, Moment, nothing
from tests.conformance.test_engines import bits, put, started, until, values
from tests.waiting import PATIENCE_S
from weightledger.ledger.engines.inplace import InplaceEngine
from weightledger.ledger.engines.scratch import scratches
from weightledger.ledger.engines.torch import TorchEngine

Make = Callable[[], nn.Module]

FIRST, SECOND = torch.full((1, WIDTH), 1.0), torch.full((1, WIDTH), -3.0)

writing = pytest.mark.parametrize("make", SCRATCH.values(), ids=SCRATCH)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    yield
    Moment.passes = staticmethod(nothing)


def alone(make: Make, engine: Any, x: Tensor) -> bytes:
    """What a module of its own gives for that input alone."""
    module = make().eval()
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name in engine.specs():
            state[name].copy_(engine.tensor(name))
        return bits(module(x))


def together(infer: Callable[[Tensor], bytes], *inputs: Tensor) -> list[bytes]:
    """Infer at once, each in a thread of its own."""
    outputs: dict[int, bytes] = {}
    failures: list[BaseException] = []

    def run(number: int, x: Tensor) -> None:
        try:
            outputs[number] = infer(x)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=one) for one in enumerate(inputs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not failures
    return [outputs[number] for number in range(len(inputs))]


def inferring(engine: Any) -> Callable[[Tensor], bytes]:
    def infer(x: Tensor) -> bytes:
        with engine.lease() as live, torch.no_grad():
            return bits(live.module(x))

    return infer


@writing
def test_two_requests_that_write_at_once_each_get_their_own_answer(make: Make) -> None:
    engine = started(TorchEngine, make())
    both = threading.Barrier(2, timeout=PATIENCE_S)
    for seq in (1, 2, 3):
        expected = [alone(make, engine, x) for x in (FIRST, SECOND)]
        assert expected[0] != expected[1]
        Moment.passes = both.wait
        assert together(inferring(engine), FIRST, SECOND) == expected
        Moment.passes = staticmethod(nothing)
        put(engine, values(engine, seq, list(engine.specs())[:1]), seq)
    engine.check_untouched()


@writing
def test_what_one_request_wrote_is_not_there_for_the_next(make: Make) -> None:
    engine = started(TorchEngine, make())
    infer = inferring(engine)
    expected = [alone(make, engine, x) for x in (FIRST, SECOND)]
    for _ in range(3):
        assert [infer(FIRST), infer(SECOND)] == expected
    engine.check_untouched()


@writing
def test_within_one_lease_a_module_keeps_what_it_wrote(make: Make) -> None:
    engine = started(TorchEngine, make())
    module = make().eval()
    with torch.no_grad():
        for name in engine.specs():
            {**dict(module.named_parameters()), **dict(module.named_buffers())}[name].copy_(
                engine.tensor(name)
            )
        with engine.lease() as live:
            for x in (FIRST, SECOND, FIRST):
                assert bits(live.module(x)) == bits(module(x))


@writing
def test_in_place_one_request_waits_for_the_other(make: Make) -> None:
    engine = started(InplaceEngine, make().eval())
    first_x = alone(make, engine, FIRST)
    order: list[str] = []

    def other_waits() -> None:
        if not order:
            order.append("first")
            until(lambda: engine._gate._waiting)
            order.append("waited")

    Moment.passes = other_waits
    infer = inferring(engine)

    def one_after_another(x: Tensor) -> bytes:
        if x is SECOND:
            until(lambda: order)
        return infer(x)

    assert together(one_after_another, FIRST, SECOND)[0] == first_x
    assert order == ["first", "waited"]


def test_in_place_a_reader_of_a_module_that_writes_may_nest_and_updates_get_in() -> None:
    engine = started(InplaceEngine, SCRATCH["Attribute"]().eval())
    with engine.lease(), engine.lease() as nested:
        assert nested.seq == 0
    done, failures = threading.Event(), []

    def read() -> None:
        try:
            while not done.is_set():
                with engine.lease() as live, torch.no_grad():
                    live.module(FIRST)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for seq in range(1, 50):
        put(engine, values(engine, seq, ["inner.bias"]), seq)
    done.set()
    for reader in readers:
        reader.join(PATIENCE_S)
    assert not failures


@pytest.mark.parametrize("make", HIDDEN.values(), ids=HIDDEN)
def test_writes_that_the_code_does_not_show_are_found_by_what_they_wrote(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    assert not scratches(make())
    engine = started(TorchEngine, make())
    infer = inferring(engine)
    infer(FIRST)
    engine.check_untouched()
    assert "each reader gets its own" in caplog.text
    both = threading.Barrier(2, timeout=PATIENCE_S)
    Moment.passes = both.wait
    expected = []
    Moment.passes = staticmethod(nothing)
    expected = [alone(make, engine, x) for x in (FIRST, SECOND)]
    Moment.passes = both.wait
    assert together(infer, FIRST, SECOND) == expected


def test_readers_of_ordinary_models_share_one_module_and_make_none() -> None:
    for name, kind in KINDS.items():
        if name in ("remembers", "old_weight_norm"):
            continue
        assert not scratches(kind.make()), name
        engine = started(TorchEngine, kind.make())
        with engine.lease() as one, engine.lease() as other:
            assert one is other


def test_only_what_leads_to_a_writing_part_is_made_for_each_reader() -> None:
    engine = started(TorchEngine, SCRATCH["IntoParent"]())
    with engine.lease() as one, engine.lease() as other:
        assert one.module is not other.module
        assert one.module.parts[0] is other.module.parts[0]
        assert one.module.parts[1][0] is not other.module.parts[1][0]
        assert one.module.parts[1][0].inner.weight is other.module.parts[1][0].inner.weight


def test_a_reader_that_keeps_only_its_own_module_holds_the_version() -> None:
    engine = started(TorchEngine, SCRATCH["Attribute"]())
    module = engine.lease().module
    put(engine, values(engine, 1), 1)
    assert engine.held_versions() == 1
    del module
    assert engine.held_versions() == 0
