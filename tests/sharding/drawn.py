"""Random layouts and random histories of them, for ranks; see `ranks`.

Every rank draws the same from the same seed, and keeps the whole tensors beside its parts, as plain
tensors that share no code with what is recorded.
"""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.debug.arrays import Bits
from tests.sharding.ranks import MODEL, problem, tell, whole
from weightledger import Ledger
from weightledger.ledger.sharding.log import ShardedLog

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)
SHAPES = ((7,), (1, 3), (701, 300), (3, 40_001), (0, 4), (5, 2, 3), (2, 1), (1,), (130_000,))


class Drawn:
    """Tensors that are cut at random, the same ones whole, and every state there was, by seq."""

    def __init__(self, seed: int, rank: int, world: int) -> None:
        self.random, self.rank, self.world = random.Random(seed), rank, world
        flat = init_device_mesh("cpu", (world,))
        layouts: list[tuple[Any, tuple[Any, ...]]] = [(flat, (Shard(0),)), (flat, (Replicate(),))]
        if world == 4:
            square = init_device_mesh("cpu", (2, 2))
            kinds = (Shard(0), Replicate(), Shard(1))
            layouts += [(square, (one, other)) for one in kinds for other in kinds]
        layouts.append((flat, (Shard(1),)))
        self.layouts: dict[str, tuple[Any, tuple[Any, ...]] | None] = {}
        self.given: dict[str, torch.Tensor] = {}
        for number in range(self.random.randint(3, 7)):
            shape, dtype = self.random.choice(SHAPES), self.random.choice(DTYPES)
            layout = self.random.choice([*layouts, None])
            if layout and len(shape) == 1 and any(p == Shard(1) for p in layout[1]):
                layout = layouts[0]
            name = f"part.{number}"
            self.layouts[name] = layout
            self.given[name] = torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
        self.states: dict[int, dict[str, torch.Tensor]] = {}
        self.tensors: dict[str, Any] = {}
        self.cut()

    def cut(self) -> None:
        for name, tensor in self.given.items():
            layout = self.layouts[name]
            part = tensor.clone()
            self.tensors[name] = part if layout is None else distribute_tensor(part, *layout)

    def note(self, seq: int) -> None:
        self.states[seq] = {name: tensor.clone() for name, tensor in self.given.items()}

    def same(self, state: Mapping[str, torch.Tensor]) -> list[str]:
        """The tensors that are not what they have to be."""
        return [name for name, one in state.items() if Bits.of(one) != Bits.of(self.given[name])]

    def change(self) -> None:
        """Random bits in a stretch of some tensors, or in single elements."""
        for name in self.random.sample(sorted(self.given), self.random.randint(0, 2)):
            flat = self.given[name].view(-1)
            if not len(flat):
                continue
            start = self.random.randrange(len(flat))
            stop = min(len(flat), start + self.random.choice([1, 5, 1000, 70_000]))
            data = self.random.randbytes((stop - start) * flat.itemsize)
            flat[start:stop] = torch.frombuffer(bytearray(data), dtype=flat.dtype)
        self.cut()


def drawn(log_of: Callable[..., ShardedLog], rank: int, folder: Path, world: int) -> None:
    seed, steps = json.loads((folder / "seed.json").read_text())
    it = Drawn(seed, rank, world)
    ledger: Ledger = log_of.ledger  # type: ignore[attr-defined]
    alpha = it.random.choice([0.1, 1.0])
    log = ledger.sharded(MODEL, it.tensors, alpha=alpha)
    it.note(0)
    wrong: list[Any] = []
    seqs = [0]
    for _ in range(steps):
        what = it.random.choice(["record", "record", "restore", "other", "diverge", "again"])
        if what == "record":
            it.change()
            seqs.append(log.record_sharded(it.tensors).seq)
            it.note(seqs[-1])
        elif what == "restore":
            at = it.random.choice(seqs)
            log.restore_sharded(it.tensors, f"seq:{at}")
            it.given = {name: tensor.clone() for name, tensor in it.states[at].items()}
            wrong += [(at, name) for name in it.same(whole(it.tensors))]
        elif what == "again":
            log = ledger.sharded(MODEL, alpha=alpha)
        elif what == "other":
            seqs.append(_another(log_of.url, it, seqs))  # type: ignore[attr-defined]
        else:
            wrong += _diverged(log, it)
    if rank == 0:
        torch.save(it.states, folder / "states.pt")
    tell(folder, rank, wrong=wrong, seqs=seqs)


def _another(url: str, it: Drawn, seqs: list[int]) -> int:
    """One process with the whole model rolls it back, or records another state of it."""
    at = it.random.choice(seqs)
    back = it.random.random() < 0.5
    if not back:
        it.change()
    told = torch.zeros(1, dtype=torch.int64)
    if it.rank == 0:
        with Ledger.open(url) as other:
            log = other.model(MODEL)
            told[0] = (log.rollback(f"seq:{at}") if back else log.record(dict(it.given))).seq
    dist.broadcast(told, 0)
    seq = int(told)
    it.states[seq] = dict(it.states[at]) if back else {n: t.clone() for n, t in it.given.items()}
    return seq


def _diverged(log: ShardedLog, it: Drawn) -> list[Any]:
    """A rank that holds other bits of what all hold is found out, and nothing is recorded."""
    copies = [
        name for name, layout in it.layouts.items() if layout is None and it.given[name].numel()
    ]
    if not copies or it.world == 1:
        return []
    name, liar = it.random.choice(copies), it.random.randrange(it.world)
    tensor: torch.Tensor = it.tensors[name]
    assert not isinstance(tensor, DTensor)
    if it.rank == liar:
        flipped = tensor.view(-1)[:1].view(torch.uint8)
        flipped[0] ^= 1
    refused = problem(lambda: log.record_sharded(it.tensors))
    it.cut()
    return [] if refused and refused[0] == "ReplicasDiverge" else [(name, refused)]
