"""Noticing writes behind the ledger: what an update looks at, and that all come up in turn."""

import pytest
import torch
from torch import nn

from weightledger.ledger.engines.counters import AT_ONCE, Rota
from weightledger.ledger.engines.inplace import InplaceEngine
from weightledger.ledger.engines.state import StateEngine
from weightledger.ledger.engines.torch import TorchEngine
from weightledger.ledger.errors import WeightsChangedOutside

MANY = 5 * AT_ONCE + 3

engines = pytest.mark.parametrize("make", [TorchEngine, InplaceEngine, StateEngine])


@pytest.mark.parametrize("count", [0, 1, AT_ONCE, AT_ONCE + 1, 2 * AT_ONCE, MANY])
def test_all_names_take_their_turn(count: int) -> None:
    names = [str(number) for number in range(count)]
    rota = Rota(names)
    seen: list[str] = []
    for _ in range(-(-count // AT_ONCE)):
        turn = rota.turn()
        assert len(turn) <= AT_ONCE
        seen += turn
    assert seen == names
    assert list(rota.turn()) == names[:AT_ONCE]


def many() -> nn.Module:
    return nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(MANY)])


@engines
def test_an_update_notices_writes_to_what_it_changes(make: type[TorchEngine]) -> None:
    engine = make(many())
    with torch.no_grad():
        engine.tensor(f"{MANY - 1}.weight").add_(1)
    engine.check_untouched(["0.weight"])
    with pytest.raises(WeightsChangedOutside, match=rf"{MANY - 1}\.weight"):
        engine.check_untouched([f"{MANY - 1}.weight"])


@engines
def test_other_writes_are_noticed_when_their_turn_comes(make: type[TorchEngine]) -> None:
    engine = make(many())
    with torch.no_grad():
        engine.tensor(f"{MANY - 1}.weight").add_(1)
    with pytest.raises(WeightsChangedOutside, match=rf"{MANY - 1}\.weight"):
        for _ in range(-(-MANY // AT_ONCE)):
            engine.check_untouched(["0.weight"])
    with pytest.raises(WeightsChangedOutside, match=rf"{MANY - 1}\.weight"):
        engine.check_untouched()


def test_in_place_a_parameter_that_was_replaced_is_noticed_when_its_turn_comes() -> None:
    module = many()
    engine = InplaceEngine(module)
    module[MANY - 1].weight = nn.Parameter(torch.ones(1, 1))
    with pytest.raises(WeightsChangedOutside, match=rf"{MANY - 1}\.weight"):
        for _ in range(-(-MANY // AT_ONCE)):
            engine.check_untouched([])


def sharing() -> nn.Module:
    """Three parameters that are views of one buffer: a write to one counts for all."""
    flat = torch.zeros(9)
    module = nn.Module()
    for number, name in enumerate("abc"):
        part = flat[3 * number : 3 * number + 3]
        setattr(module, name, nn.Parameter(part))
    return module


def test_in_place_updates_of_one_view_are_no_write_to_its_neighbours() -> None:
    engine = InplaceEngine(sharing())
    engine.publish(engine.prepare({"b": torch.ones(3)}), seq=1, digest=b"")
    engine.check_untouched()


def test_in_place_a_write_to_a_neighbour_stays_noticed_after_an_update() -> None:
    engine = InplaceEngine(many())
    with torch.no_grad():
        engine.tensor("5.weight").add_(1)
    engine.publish(engine.prepare({"0.weight": torch.ones(1, 1)}), seq=1, digest=b"")
    with pytest.raises(WeightsChangedOutside, match=r"5\.weight"):
        engine.check_untouched()
