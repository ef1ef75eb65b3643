"""Recording what training wraps: the wrapper's part of each name is taken off, and named."""

import json
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from weightledger import Caller, InvalidRequest, Ledger, Log, NotFound

# torch.compile imports what warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def moved(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1
    return module


class DistributedDataParallel(torch.nn.Module):
    """Names as DDP's: the module is its attribute `module`."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def compiled_inside(module: torch.nn.Module) -> torch.nn.Module:
    module[0] = torch.compile(module[0])
    return module


WRAPPERS = {
    "DataParallel": (torch.nn.DataParallel, ["module."]),
    "DDP": (DistributedDataParallel, ["module."]),
    "compile": (torch.compile, ["_orig_mod."]),
    "AveragedModel": (AveragedModel, ["module."]),
    "compiled DDP": (lambda m: torch.compile(DistributedDataParallel(m)), ["_orig_mod.module."]),
    "DDP of compiled": (lambda m: DistributedDataParallel(torch.compile(m)), ["module._orig_mod."]),
    "compiled average": (lambda m: torch.compile(AveragedModel(m)), ["_orig_mod.module."]),
    "twice": (lambda m: DistributedDataParallel(DistributedDataParallel(m)), ["module.module."]),
    "compiled layer": (compiled_inside, ["_orig_mod."]),
    "DDP with a compiled layer": (
        lambda m: DistributedDataParallel(compiled_inside(m)),
        ["module._orig_mod.", "module."],
    ),
}


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


@pytest.fixture
def log(ledger: Ledger) -> Log:
    return ledger.model("m", base=network())


@pytest.mark.parametrize(("wrap", "parts"), WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("as_dict", [False, True], ids=["module", "state dict"])
def test_a_wrapped_model_is_recorded_as_what_is_inside(
    log: Log, wrap, parts: list[str], as_dict: bool
) -> None:
    wrapped = wrap(moved(network()))
    event = log.record(wrapped.state_dict() if as_dict else wrapped)
    assert event.body["unwrapped"] == parts
    expected = moved(network()).state_dict()
    state = log.state()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_plain_model_says_nothing_of_wrappers(log: Log) -> None:
    assert "unwrapped" not in log.record(moved(network())).body


def test_a_retry_does_not_depend_on_the_wrapper(log: Log) -> None:
    once = Caller(idempotency_key="step 1")
    event = log.record(torch.nn.DataParallel(moved(network())), caller=once)
    assert log.record(moved(network()), caller=once) == event


def test_a_model_registered_in_its_wrapper_is_recorded_without(ledger: Ledger) -> None:
    log = ledger.model("wrapped", base=torch.nn.DataParallel(network()))
    log.record(moved(network()))
    assert torch.equal(log.state()["module.0.bias"], moved(network())[0].bias)
    log.record(DistributedDataParallel(torch.compile(network())))
    assert torch.equal(log.state()["module.0.bias"], network()[0].bias)


def test_names_that_are_the_models_own_stay(ledger: Ledger) -> None:
    own = {"module.w": torch.zeros(2), "w": torch.zeros(2)}
    log = ledger.model("own", base=own)
    event = log.record({"module.w": torch.ones(2), "w": torch.zeros(2)})
    assert "unwrapped" not in event.body
    with pytest.raises(NotFound, match=r"lacks w"):
        log.record({"module.w": torch.ones(2)})


def test_a_prefix_that_is_no_wrappers_is_named(log: Log) -> None:
    state = {f"student.{name}": t for name, t in network().state_dict().items()}
    with pytest.raises(NotFound, match=r"behind the prefix 'student\.'"):
        log.record(state)
    with pytest.raises(NotFound, match=r"lacks 0\.bias"):
        log.record({"module.0.weight": torch.zeros(2, 3)})
    with pytest.raises(InvalidRequest, match=r"has no extra"):
        log.record({**network().state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(InvalidRequest, match=r"has no module\.extra"):
        wrapped = torch.nn.DataParallel(network()).state_dict()
        log.record({**wrapped, "module.extra": torch.zeros(1)})
    assert log.live.head.seq == 0


def test_ties_are_recorded_through_a_wrapper(ledger: Ledger) -> None:
    shared = torch.zeros(3)
    log = ledger.model("tied", base={"a": shared, "b": shared})
    log.record({"module.a": torch.ones(3), "module.b": torch.ones(3)})
    assert log.state()["b"].tolist() == [1.0] * 3
    with pytest.raises(InvalidRequest, match="'b' is tied to 'a'"):
        log.record({"module.a": torch.ones(3), "module.b": torch.zeros(3)})


def test_the_event_is_readable(log: Log) -> None:
    event = log.record(torch.nn.DataParallel(moved(network())))
    assert json.loads(event.header)["body"]["unwrapped"] == ["module."]
    assert log.verify().problem is None
