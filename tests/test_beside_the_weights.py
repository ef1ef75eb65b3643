"""Tensors beside the weights may take another dtype or shape, though their bits are the same."""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.planned import Planned
from weightledger import Ledger, Log, Plan
from weightledger.ledger.debug.walking import ReplayedState
from weightledger.ledger.events import Event

NAME = "rule/w/main/trace"
SAME_BITS = (
    torch.zeros(2, 2),
    torch.zeros(4),
    torch.zeros(4, dtype=torch.int32),
    torch.zeros(2, 4, dtype=torch.bfloat16),
)
EMPTY = (torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, dtype=torch.bfloat16))


@pytest.fixture
def log(database_url: str) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        yield ledger.model("m", base={"w": torch.zeros(4)})


def put(log: Log, tensor: torch.Tensor | None) -> Event:
    return log.execute(Planned(lambda staged: Plan({"operation": "t"}, {}, {NAME: tensor})))


def spec(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size]:
    return tensor.dtype, tensor.shape


def before(seq: int, put: Mapping[int, torch.Tensor], state: ReplayedState) -> bool:
    """A judge that looks at the tensor too: what it was when it was put."""
    if state.seq in put:
        assert spec(state.tensors[NAME]) == spec(put[state.seq])
    return state.seq < seq


@pytest.mark.parametrize("values", [SAME_BITS, EMPTY], ids=["of zeros", "empty"])
@pytest.mark.parametrize("between", [False, True], ids=["at once", "taken away between"])
def test_every_state_has_the_dtype_and_the_shape_that_were_put(
    log: Log, values: tuple[torch.Tensor, ...], between: bool
) -> None:
    """Live, rebuilt, walked through, rolled back to by a snapshot, compared and blamed."""
    seqs = []
    for value in values:
        if between:
            put(log, None)
        seqs.append(put(log, value).seq)
        assert spec(log.live.auxiliary[NAME]) == spec(value)
        log.snapshot()
    assert len({log.history.require(seq).state_after for seq in seqs}) == len(seqs)
    put_at = dict(zip(seqs, values, strict=True))
    for seq, value in put_at.items():
        assert spec(log.state(f"seq:{seq}")[NAME]) == spec(value)
        found = log.bisect("seq:0", f"seq:{seqs[-1]}", partial(before, seq, put_at))
        assert found["first_bad"]["seq"] == seq
        log.rollback(f"seq:{seq}")
        assert spec(log.live.auxiliary[NAME]) == spec(value)
    for one, other in pairwise(seqs):
        (changed,) = log.diff(f"seq:{one}", f"seq:{other}").tensors
        assert changed.kind == "replaced"
    assert set(seqs) <= {one.event.seq for one in log.blame(NAME).touches}
    assert log.verify().ok


def test_a_what_if_gives_them_back_and_is_adopted_with_them(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(4)})
        put(log, SAME_BITS[0])
        last = put(log, SAME_BITS[1])
        adopted = log.adopt_what_if([last.name])
        assert spec(log.live.auxiliary[NAME]) == spec(SAME_BITS[0])
        assert last.parent is not None
        assert adopted.state_after == log.history.require(last.parent).state_after
