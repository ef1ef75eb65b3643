"""Bits: every dtype and layout through the log, random histories, and any position again."""

import math
import uuid

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightledger import IncrementalUpdateRequest, Ledger, Log, StateEngine, TorchEngine
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.events.bodies.operands import payload_bytes_of
from weightledger.ledger.tensors.lanes import empty, lanes
from weightledger.ledger.tensors.spec import DTYPES, TensorSpec


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: lanes(tensor).tobytes() for name, tensor in tensors.items()}


def noise(name: str, dtype: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bit pattern at all: NaN payloads, infinities, denormals, both zeros."""
    tensor = empty(TensorSpec(name, dtype, shape))
    raw = lanes(tensor).view("u1")
    limit = 2 if dtype == "bool" else 256
    generator = torch.Generator().manual_seed(seed)
    raw[:] = torch.randint(0, limit, raw.shape, dtype=torch.uint8, generator=generator).numpy()
    return tensor


SHAPES = {"matrix": (7, 33), "scalar": (), "empty": (0, 5), "one": (1,)}


def every_kind(seed: int) -> dict[str, torch.Tensor]:
    state = {
        f"{dtype}.{kind}": noise("x", dtype, shape, seed + n)
        for n, dtype in enumerate(DTYPES)
        for kind, shape in SHAPES.items()
    }
    state["transposed"] = noise("x", "float32", (16, 9), seed).T
    state["strided"] = noise("x", "bfloat16", (16, 9), seed)[::2, ::3]
    return state


def test_every_dtype_shape_and_bit_pattern_is_recorded_and_restored(tmp_path) -> None:
    states = [every_kind(seed) for seed in (1, 1000, 2000)]
    for name in ("float32.matrix", "int64.matrix", "bool.matrix"):
        states[2][name] = states[1][name]  # unchanged by the second event
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        log = ledger.model("kinds", base=states[0])
        for state in states[1:]:
            log.record(state)
        for seq, state in enumerate(states):
            assert bits(log.state(f"seq:{seq}")) == bits(state)
        log.rollback("seq:0")
        assert bits(log.state()) == bits(states[0])
        assert {n: lanes(log.projector.engine.tensor(n)).tobytes() for n in states[0]} == bits(
            states[0]
        )
        log.rollback("seq:2")
        assert bits(log.state()) == bits(states[2])
        changed = {change.name for change in log.history.require(2).changes}
        assert "weights/float32.matrix" not in changed
        assert verify(log.history).problem is None


def test_update_types_on_half_and_double(tmp_path) -> None:
    module = torch.nn.ParameterDict(
        {
            name: torch.nn.Parameter(torch.randn(5, 6).to(dtype))
            for name, dtype in (
                ("w16", torch.float16),
                ("b16", torch.bfloat16),
                ("w64", torch.float64),
            )
        }
    )
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        log = ledger.model("kinds", engine=TorchEngine(module))
        before = bits(log.state())
        for name in module:
            for kind in ("additive", "multiplicative", "replace"):
                log.apply(IncrementalUpdateRequest(name, torch.randn(5, 6), 0.3, kind))
        served = {n: lanes(log.projector.engine.tensor(n)).tobytes() for n in module}
        assert served == bits(log.state())
        log.rollback("seq:0")
        assert bits(log.state()) == before
        assert verify(log.history).problem is None


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(tokens)))


def test_tied_parameters_are_one_tensor_with_two_names(tmp_path) -> None:
    torch.manual_seed(0)
    tokens = torch.tensor([1, 5, 9])
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        log = ledger.model("tied", engine=TorchEngine(Tied()))
        assert "head.weight" not in log.specs
        assert "norm.running_mean" in log.specs
        assert "scratch" not in log.specs
        log.apply(IncrementalUpdateRequest("embed.weight", torch.randn(11, 4), 1.0))
        log.apply(IncrementalUpdateRequest("norm.running_mean", 0.5, 1.0))
        log.apply(IncrementalUpdateRequest("norm.num_batches_tracked", 7, update_type="replace"))
        with log.projector.engine.lease() as live, torch.inference_mode():
            assert live.module.head.weight is live.module.embed.weight
            served = live.module(tokens)
        state = log.state()
        assert state["head.weight"] is state["embed.weight"]
        fresh = Tied().eval()
        fresh.load_state_dict(state)
        with torch.inference_mode():
            assert lanes(fresh(tokens)).tobytes() == lanes(served).tobytes()
        assert int(state["norm.num_batches_tracked"]) == 7


def test_a_transposed_parameter_stays_one_and_computes_the_same(tmp_path) -> None:
    torch.manual_seed(1)
    linear = torch.nn.Linear(64, 48)
    linear.weight = torch.nn.Parameter(torch.randn(64, 48).T)
    x = torch.randn(5, 64)
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        log = ledger.model("t", engine=TorchEngine(linear))
        with log.projector.engine.lease() as live, torch.inference_mode():
            before = live.module(x)
            stride = live.module.weight.stride()
        log.apply(IncrementalUpdateRequest("weight", torch.randn(48, 64), 0.1))
        log.rollback("seq:0")
        with log.projector.engine.lease() as live, torch.inference_mode():
            assert live.module.weight.stride() == stride
            assert lanes(live.module(x)).tobytes() == lanes(before).tobytes()


def test_operands_that_change_nothing_are_events_without_tensors(tmp_path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        log = ledger.model("m", base={"w": torch.randn(4)})
        event = log.apply(IncrementalUpdateRequest("w", torch.randn(4), learning_rate=0.0))
        assert (event.kind, event.changes) == ("updated", ())
        assert event.payload_size == payload_bytes_of(event.body)
        assert event.state_after == event.state_before
        assert log.record(log.state()).changes == ()


def test_a_result_that_is_not_finite_is_recorded_as_refused(tmp_path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        log = ledger.model("m", base={"w": torch.full((4,), 3e38), "v": torch.zeros(2)})
        event = log.apply(IncrementalUpdateRequest("w", torch.full((4,), 3e38), 1.0))
        assert event.kind == "update_rejected"
        assert event.body["reason"].startswith("Automatic rollback")
        assert event.body["evidence"]["cause"] == "non_finite"
        assert log.live.head.node == 0
        assert math.isfinite(float(log.projector.engine.tensor("w").max()))
        later = log.apply(IncrementalUpdateRequest("v", 1.0, 1.0))
        assert later.name.startswith("update_2_")


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.sampled_from("ab"), st.integers(0, 2**31)),
        st.tuples(st.just("record"), st.integers(0, 2**31)),
        st.tuples(st.just("rollback"), st.floats(0, 1)),
        st.tuples(st.just("version")),
        st.tuples(st.just("snapshot")),
    ),
    min_size=1,
    max_size=14,
)


def act(log: Log, action: tuple) -> None:
    match action:
        case ("update", name, seed):
            torch.manual_seed(seed)
            log.apply(IncrementalUpdateRequest(name, torch.randn(log.specs[name].shape), 0.5))
        case ("record", seed):
            torch.manual_seed(seed)
            log.record({"a": torch.randn(6, 50), "b": torch.randn(40).to(torch.bfloat16)})
        case ("rollback", share):
            log.rollback(f"seq:{int(share * log.live.head.seq)}")
        case ("version",):
            log.create_version("x")
        case ("snapshot",):
            log.snapshot()


@given(actions=ACTIONS)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_history_gives_any_state_again(database_url, actions) -> None:
    name = uuid.uuid4().hex
    seen: dict[int, dict[str, bytes]] = {}

    def look(log: Log) -> None:
        engine = log.projector.engine
        seen[log.live.head.seq] = {n: lanes(engine.tensor(n)).tobytes() for n in log.specs}

    torch.manual_seed(0)
    base = {"a": torch.randn(6, 50), "b": torch.randn(40).to(torch.bfloat16)}
    with Ledger.open(database_url) as ledger:
        log = ledger.model(name, engine=StateEngine(base))
        look(log)
        for action in actions:
            act(log, action)
            look(log)
        back: list[Log] = [log, ledger.model(name)]  # one that wrote, one that starts afterwards
        for reader in back:
            for seq in seen:
                assert bits(reader.state(f"seq:{seq}")) == seen[seq]
        newest = back[1].projector.engine
        assert {n: lanes(newest.tensor(n)).tobytes() for n in log.specs} == seen[max(seen)]
        assert verify(log.history).problem is None


@pytest.mark.parametrize("damage", ["shape", "dtype", "missing"])
def test_recording_another_model_is_refused(tmp_path, damage) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(3), "v": torch.zeros(2)})
        wrong = {
            "shape": {"w": torch.zeros(4), "v": torch.zeros(2)},
            "dtype": {"w": torch.zeros(3).double(), "v": torch.zeros(2)},
            "missing": {"w": torch.zeros(3)},
        }[damage]
        with pytest.raises((ValueError, LookupError), match=r"'w' is float32|lacks v"):
            log.record(wrong)
        assert log.live.head.seq == 0
