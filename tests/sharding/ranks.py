"""What ranks do in the tests of sharded models: run in real processes, over gloo.

    main(scenario, rank, world, folder)

Each scenario writes what it saw into its folder, for the test to compare with one process's doing.
"""

import json
import os
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from weightledger import Ledger
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.sharding.limits import ShardLimits
from weightledger.ledger.sharding.log import ShardedLog
from weightledger.ledger.sharding.parts import rows_of
from weightledger.ledger.sharding.ranks import Ranks
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.policy import UNJUDGED, Policy, Preparing

MODEL = "cut"
WIDE, HIGH = 300, 701  # rows of 1,200 bytes: a rank's end lies within a digest's chunk


class Net(torch.nn.Module):
    """Large and small weights, a tied one, buffers, and rows that two ranks cannot share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(WIDE, HIGH)
        self.low = torch.nn.Linear(64, 33, bias=False, dtype=torch.bfloat16)
        self.one = torch.nn.Parameter(torch.randn(1, 5))
        self.tied = self.low
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


def net() -> Net:
    torch.manual_seed(7)
    return Net()


def whole(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All of them, put together."""
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for name, t in tensors.items()
    }


def step(module: torch.nn.Module, number: int) -> None:
    """Change a module's own part of every tensor, or of some."""
    with torch.no_grad():
        for place, tensor in enumerate(module.state_dict().values()):
            if number % 3 == 1 and place != 0:
                continue
            generator = torch.Generator().manual_seed(100 * number + place)
            change = torch.randn(tensor.shape, generator=generator)
            if not isinstance(tensor, DTensor):
                tensor.add_(number)
                continue
            start, stop = rows_of(tensor) or (0, 0)
            if number % 3 == 2:  # the last rows alone
                change[: tensor.shape[0] - 1] = 0
            tensor.to_local().add_(change[start:stop].to(tensor.dtype))


def fsdp(log_of: Callable[..., ShardedLog], rank: int, folder: Path, world: int) -> None:
    """FSDP2: registered, recorded, restored; on two ranks, and on two pairs of replicas."""
    shape, names = ((2,), ("shard",)) if world == 2 else ((2, 2), ("copy", "shard"))
    module = fully_shard(net(), mesh=init_device_mesh("cpu", shape, mesh_dim_names=names))
    log = log_of(module)
    states = [whole(module.state_dict())]
    events = []
    for number in range(1, 5):
        step(module, number)
        events.append(log.record_sharded(module, f"step {number}", caller=Caller(actor="ana")))
        states.append(whole(module.state_dict()))
    events.append(log.record_sharded(module))  # nothing changed
    restored = log.restore_sharded(module, "seq:2")
    states.append(whole(module.state_dict()))
    assert restored.seq == 2
    # Another process goes on from an older state; what is recorded next is compared with it.
    if rank == 0:
        with Ledger.open(log_of.url) as other:  # type: ignore[attr-defined]
            other.model(MODEL).rollback("seq:1")
    dist.barrier()
    events.append(log.record_sharded(module))
    for tensor in module.state_dict().values():
        if not isinstance(tensor, DTensor) and rank == world - 1:
            tensor.add_(1)
    refused = problem(lambda: log.record_sharded(module))
    if rank == 0:
        torch.save(states, folder / "states.pt")
    tell(folder, rank, seqs=[event.seq for event in events], refused=refused)


def placements(log_of: Callable[..., ShardedLog], rank: int, folder: Path, world: int) -> None:
    """DTensors of every placement, and what one has of them by its rows."""
    flat = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (2, world // 2))
    cases: list[tuple[Any, tuple[Any, ...]]] = [
        (flat, (Shard(0),)),
        (flat, (Shard(1),)),
        (flat, (Replicate(),)),
        (square, (Shard(0), Shard(0))),
        (square, (Shard(0), Shard(1))),
        (square, (Shard(1), Shard(0))),
        (square, (Replicate(), Shard(0))),
        (square, (Shard(0), Replicate())),
        (square, (Replicate(), Shard(1))),
    ]
    random = torch.Generator().manual_seed(1)
    given: dict[str, torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for number, (mesh, placed) in enumerate(cases):
        for rows, columns in ((17_001, 5), (3, 40_000), (1, 1), (0, 4)):
            name = f"{number}.{rows}"
            given[name] = torch.randn(rows, columns, generator=random)
            tensors[name] = distribute_tensor(given[name].clone(), mesh, placed)
            cut = rows_of(tensors[name])  # type: ignore[arg-type]
            if cut is not None:
                assert torch.equal(tensors[name].to_local(), given[name][slice(*cut)])  # type: ignore[attr-defined]
    scalar = torch.tensor(3.0, dtype=torch.float64)
    given["scalar"], tensors["scalar"] = (
        scalar,
        distribute_tensor(scalar.clone(), flat, (Replicate(),)),
    )
    log = log_of(tensors)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.mul_(2)
            given[name] = given[name] * 2
    event = log.record_sharded(tensors)
    assert log.restore_sharded(tensors, "seq:0").seq == 0
    halves = {name: torch.equal(t, given[name] / 2) for name, t in whole(tensors).items()}
    part = DTensor.from_local(torch.ones(2), flat, (Partial(),))
    refused = problem(lambda: log.record_sharded({**tensors, "scalar": part}))
    missing = problem(lambda: log.record_sharded({"scalar": tensors["scalar"]}))
    with torch.no_grad():
        if rank == world - 1:
            tensors["2.3"].to_local().add_(1)  # type: ignore[attr-defined]
    diverged = problem(lambda: log.record_sharded(tensors))
    if rank == 0:
        torch.save(given, folder / "states.pt")
    wrong = [name for name, right in halves.items() if not right]
    tell(folder, rank, seqs=[event.seq], wrong=wrong,
         refused=refused, missing=missing, diverged=diverged)  # fmt: skip


def judged(log_of: Callable[..., ShardedLog], rank: int, folder: Path, world: int) -> None:
    """Limits, keys, the two-person rule, and the snapshots that ranks write."""
    module = fully_shard(net(), mesh=init_device_mesh("cpu", (2,)))
    ledger = log_of.ledger  # type: ignore[attr-defined]
    log_of(module).close()
    refused = [
        problem(lambda p=policy: ledger.sharded(MODEL, module, policy=p).record_sharded(module))
        for policy in (
            Policy(two_person=True),
            Policy(updates=False),
            Policy(prepare=Preparing("all")),
            Policy(guard=lambda changes: UNJUDGED),  # type: ignore[arg-type]
        )
    ]
    log = ledger.sharded(MODEL, module, limits=ShardLimits(max_norm=2000.0))
    step(module, 1)
    key = Caller(actor="ana", idempotency_key="step 1")
    events = [log.record_sharded(module, caller=key) for _ in range(2)]
    again = log.record_sharded(module, caller=key, metadata=None)
    other = problem(lambda: log.record_sharded(module, caller=key, metadata={"n": 1}))
    weight = module.state_dict()["first.weight"].to_local()
    kept = weight.clone()
    with torch.no_grad():
        if rank == world - 1:  # one rank alone knows of it
            weight[-1, -1] = float("nan")
    events.append(log.record_sharded(module))
    with torch.no_grad():
        weight.copy_(kept * 1e6)
    events.append(log.record_sharded(module))
    with torch.no_grad():
        weight.copy_(kept)
    for number in (3, 6, 9, 12, 15):
        step(module, number)
        events.append(log.record_sharded(module))
    if rank == 0:
        torch.save(whole(module.state_dict()), folder / "states.pt")
    else:
        whole(module.state_dict())
    tell(
        *(folder, rank),
        seqs=[event.seq for event in events],
        again=again.seq,
        other=other,
        refused=refused,
    )


def killed(log_of: Callable[..., ShardedLog], rank: int, folder: Path, world: int) -> None:
    """A rank that is killed when it comes to the n-th thing that it would tell the others."""
    victim, at = json.loads((folder / "kill.json").read_text())
    module = fully_shard(net(), mesh=init_device_mesh("cpu", (2,)))
    log = log_of(module)
    step(module, 1)
    dist.barrier()
    count, told = 0, Ranks.tell_all

    def counted(self: Ranks, value: Any) -> list[Any]:
        nonlocal count
        count += 1
        if count == at and rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return told(self, value)

    Ranks.tell_all = counted  # type: ignore[method-assign]
    refused = problem(lambda: log.record_sharded(module))
    tell(folder, rank, refused=refused, count=count)


def problem(work: Callable[[], object]) -> list[Any] | None:
    """What the ledger raises: the class, the words, and the rank that is named."""
    try:
        work()
    except LedgerError as error:
        return [type(error).__name__, str(error), getattr(error, "rank", None)]
    return None


def tell(folder: Path, rank: int, **facts: Any) -> None:
    (folder / f"rank-{rank}.json").write_text(json.dumps(facts))


def main(
    scenario: str,
    rank: int,
    world: int,
    folder: str,
    url: str,
    blob_url: str | None,
    more: Sequence[Callable[..., None]] = (),
) -> None:
    warnings.simplefilter("default")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    with Ledger.open(url, blob_url=blob_url) as ledger:

        def log_of(module: Any) -> ShardedLog:
            return ledger.sharded(MODEL, module)

        log_of.url = url  # type: ignore[attr-defined]
        log_of.ledger = ledger  # type: ignore[attr-defined]
        scenarios = globals() | {one.__name__: one for one in more}
        scenarios[scenario](log_of, rank, Path(folder), world)
    os._exit(0)  # gloo's threads may wait for a rank that is gone
