"""Live weights that are written behind the ledger are noticed, and nothing is built on them."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

from tests.api.test_command import inside
from tests.faults import folders, models
from tests.serving import serving
from weightledger import DynamicModelManager, DynamicUpdateConfig, Ledger, TorchEngine
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import WeightsChangedOutside
from weightledger.ledger.log import Log
from weightledger.ledger.tensors.lanes import lanes

MEDDLING = "tests.faults.models:meddling"

Write = Callable[[torch.nn.Module], object]


def in_place(module: torch.nn.Module) -> None:
    with torch.no_grad():
        module[2].bias.add_(1)


def an_optimizer_step(module: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.ones(1, 400)).sum().backward()
    optimizer.step()


def load_state_dict(module: torch.nn.Module) -> None:
    module.load_state_dict({name: t + 1 for name, t in module.state_dict().items()})


def other_data(module: torch.nn.Module) -> None:
    module[2].bias.data = torch.zeros(4)


def other_parameter(module: torch.nn.Module) -> None:
    module[2].bias = torch.nn.Parameter(torch.zeros(4))


def through_data(module: torch.nn.Module) -> None:
    module[2].bias.data.add_(1)


def through_numpy(module: torch.nn.Module) -> None:
    module[2].bias.detach().numpy()[0] += 1


COUNTED = [in_place, an_optimizer_step, load_state_dict, other_data]
UNCOUNTED = [through_data, through_numpy]


@contextlib.contextmanager
def managing(folder: Path, engine: Any) -> Iterator[DynamicModelManager]:
    config = DynamicUpdateConfig(backup_dir=folder)
    made = DynamicModelManager(engine, folders.MODEL, config=config)
    try:
        made.log.apply(folders.request("2.bias", [1.0, 2.0, 3.0, 4.0]))
        yield made
    finally:
        made.close()


# Each of these changes the tensor 2.bias, which other writes have changed outside.
CHANGES: dict[str, Callable[[Log], object]] = {
    "update": lambda log: log.apply(folders.request("2.bias", 0.5)),
    "rollback": lambda log: log.rollback("seq:0"),
    "record": lambda log: log.record({**log.state(), "2.bias": torch.zeros(4)}),
}
ELSEWHERE: dict[str, Callable[[Log], object]] = {
    "update": lambda log: log.apply(folders.request("0.bias", 0.5)),
    "rollback": lambda log: log.rollback("seq:1"),
    "record": lambda log: log.record({**log.state(), "0.bias": torch.zeros(400)}),
}

KINDS = [*CHANGES, *(f"{kind} elsewhere" for kind in ELSEWHERE)]

by_name = {"ids": lambda write: write.__name__}
bare_or_versions = pytest.mark.parametrize("bare", [True, False], ids=["bare", "versions"])


def assert_refused(manager: DynamicModelManager, change: Callable[[Log], object]) -> None:
    events, live = manager.log.events(), manager.log.live
    for _ in range(2):
        with pytest.raises(WeightsChangedOutside, match=r"2\.bias"):
            change(manager.log)
    assert manager.log.events() == events
    assert manager.log.live == live
    assert verify(manager.log.history).problem is None


@pytest.mark.parametrize("change", [*CHANGES.values(), *ELSEWHERE.values()], ids=KINDS)
@pytest.mark.parametrize("write", [*COUNTED, other_parameter], **by_name)
def test_writes_to_a_bare_module_stop_every_change(
    tmp_path: Path, write: Write, change: Callable[[Log], object]
) -> None:
    module = models.factory()
    with managing(tmp_path / "data", module) as manager:
        write(module)
        assert_refused(manager, change)


@pytest.mark.parametrize("change", [*CHANGES.values(), *ELSEWHERE.values()], ids=KINDS)
@pytest.mark.parametrize("write", [in_place, other_data], **by_name)
def test_writes_to_a_served_version_stop_every_change(
    tmp_path: Path, write: Write, change: Callable[[Log], object]
) -> None:
    with managing(tmp_path / "data", TorchEngine(models.factory())) as manager:
        with manager.lease() as live:
            write(live.module)
        assert_refused(manager, change)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("write", UNCOUNTED, **by_name)
@bare_or_versions
def test_uncounted_writes_stop_changes_of_that_tensor(
    tmp_path: Path, write: Write, change: Callable[[Log], object], bare: bool
) -> None:
    """A change computed from bits that the log does not have could never be rebuilt."""
    module = models.factory()
    with managing(tmp_path / "data", module if bare else TorchEngine(module)) as manager:
        with manager.lease() as live:
            write(live.module)
        assert_refused(manager, change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_uncounted_writes_to_a_large_tensor_stop_its_next_change(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Its chunks are known by checksums where they were recorded, by digests where they were not:
    either notices."""
    weights = torch.zeros(900_000, dtype=dtype)
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        log = ledger.model("m", base={"w": weights})
        weights[:10] = 1
        log.record({"w": weights})
        known = log.projector.hashed("weights/w").checksums
        assert known is not None and any(known[:16]) and not any(known[16:])
        live = log.projector.tensor("weights/w")
        for at in (9, 899_999):
            for write in (live.data[at : at + 1].add_, _through_numpy(live, at)):
                write(1)
                changed = weights.clone()
                changed[[3, 899_990]] = 2
                events = log.events()
                with pytest.raises(WeightsChangedOutside, match="w"):
                    log.record({"w": changed})
                assert log.events() == events
                write(-1)
        log.record({"w": changed})
        log.rollback("seq:1")
        assert verify(log.history).problem is None
        assert torch.equal(log.projector.tensor("weights/w"), weights)


def _through_numpy(live: torch.Tensor, at: int) -> Callable[[int], object]:
    bits = lanes(live)

    def write(step: int) -> None:
        bits[at] += np.array(step).astype(bits.dtype)

    return write


@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE)
@pytest.mark.parametrize("write", UNCOUNTED, **by_name)
@bare_or_versions
def test_uncounted_writes_elsewhere_are_found_by_hashing_and_do_not_spoil_the_log(
    tmp_path: Path, write: Write, change: Callable[[Log], object], bare: bool
) -> None:
    module = models.factory()
    with managing(tmp_path / "data", module if bare else TorchEngine(module)) as manager:
        with manager.lease() as live:
            write(live.module)
        with contextlib.suppress(WeightsChangedOutside):
            change(manager.log)
        live, hashed = manager.log.verify_live()
        differing = {n for n, d in hashed.digests.items() if d != live.state.digests[n]}
        assert differing == {"weights/2.bias"}
        assert verify(manager.log.history).problem is None


def test_a_server_whose_model_writes_to_itself(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    live = ("verify", "--live", "--data-dir", str(folder))
    used, other = ({"parameter_name": f"{n}.weight", "update_data": 1} for n in ("used", "other"))
    with serving(folder, "--model", MEDDLING) as server, server.client() as http:

        def infer(first: float) -> None:
            reply = http.post("/invocations", json={"inputs": [[first, 0.0, 0.0, 0.0]]})
            assert reply.status_code == 200

        def update(sent: dict[str, Any]) -> httpx2.Response:
            return http.post("/v1/models/incremental_update", json=sent)

        infer(0.0)
        assert inside(*live)[0] == 0

        infer(models.Meddling.UNCOUNTED)
        assert update(used).status_code == 200
        reply = http.post("/v1/models/verify", json={})
        assert reply.status_code == 503
        assert reply.json()["error"]["message"].endswith("other.weight")
        status, _, message = inside(*live)
        assert status == 1
        assert "other.weight" in message
        assert inside("verify", "--data-dir", str(folder))[0] == 0

        infer(models.Meddling.COUNTED)
        recorded = http.get("/v1/models/updates").json()
        for sent in (used, other):
            reply = update(sent)
            assert reply.status_code == 503
            error = reply.json()["error"]
            assert error["code"] == "weights_mismatch"
            assert "changed without the ledger: other.weight" in error["message"]
        assert http.get("/v1/models/updates").json() == recorded

        server.stop()
        server.start()  # from the log, that is without those changes
        assert inside(*live)[0] == 0
        assert update(used).status_code == 200


@pytest.mark.parametrize("write", COUNTED, **by_name)
@bare_or_versions
def test_counted_writes_are_noticed_by_a_process_that_only_follows(
    tmp_path: Path, write: Write, bare: bool
) -> None:
    module = models.factory()
    with managing(tmp_path / "data", module if bare else TorchEngine(module)) as manager:
        asyncio.run(manager.catch_up())
        assert manager.fault is None
        with manager.lease() as live:
            write(live.module)
        with pytest.raises(WeightsChangedOutside, match=r"2\.bias"):
            asyncio.run(manager.catch_up())
        assert "2.bias" in (manager.fault or "")
