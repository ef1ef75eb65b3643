"""Random layouts over random numbers of ranks: states, bits and digests are those of one process
that has the whole model, whatever ranks and other processes write and restore in between."""

import json
from pathlib import Path

import pytest
import torch

from tests.debug.arrays import Bits
from tests.sharding.ranks import MODEL
from tests.sharding.test_sharded import run_ranks
from weightledger import Ledger
from weightledger.ledger.audit.verify import verify


@pytest.mark.parametrize(("seed", "world"), [(117, 4), (102, 3)])
def test_drawn_layouts_are_recorded_as_by_one_process(
    tmp_path: Path, seed: int, world: int
) -> None:
    history(tmp_path, seed, world, steps=8)


@pytest.mark.soak
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(200, 225))
def test_so_are_many(tmp_path: Path, seed: int, world: int) -> None:
    history(tmp_path, seed, world, steps=25)


def history(folder: Path, seed: int, world: int, steps: int) -> None:
    url, blobs = f"sqlite:///{folder}/ledger.db", str(folder / "blobs") if seed % 2 else None
    (folder / "seed.json").write_text(json.dumps([seed, steps]))
    told = run_ranks("drawn", world, folder, url, blobs)
    assert [one["wrong"] for one in told] == [[]] * world
    assert all(one["seqs"] == told[0]["seqs"] for one in told)
    states: dict[int, dict[str, torch.Tensor]] = torch.load(folder / "states.pt")
    assert len(states) > steps // 4
    with Ledger.open(url, blob_url=blobs) as cut, Ledger.open(f"sqlite:///{folder}/one.db") as one:
        history = cut.history(MODEL)
        report = verify(history)
        assert report.ok, report.problem
        beside = one.model(MODEL, base=states[0])
        for seq, state in states.items():
            found = history.state(f"seq:{seq}")
            assert {name: Bits.of(found[name]) for name in state} == {
                name: Bits.of(tensor) for name, tensor in state.items()
            }
            if seq:
                beside.record(state)
            assert beside.live.state.value == history.require(seq).state_after
