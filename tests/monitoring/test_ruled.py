"""What a policy says of a candidate before anybody sees it."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.monitoring.models import Serving, update
from weightledger import DynamicModelManager, DynamicUpdateConfig, TorchEngine
from weightledger.ledger.errors import StorageError
from weightledger.ledger.events import Event
from weightledger.ledger.monitoring.ruled import RuledGuard
from weightledger.ledger.monitoring.trial_log import DEGRADED
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import RollBack

Make = Callable[..., DynamicModelManager]


def kept(module: torch.nn.Module) -> dict[str, float]:
    """An accuracy of .9, less what `delay` takes off it in per cent."""
    (delay,) = module.get_parameter("delay").detach().tolist()
    return {"accuracy": 0.9 * (1 - delay / 100)}


@pytest.fixture
def scored(tmp_path: Path) -> Iterator[Make]:
    made: list[DynamicModelManager] = []

    def make(**config: Any) -> DynamicModelManager:
        settings = DynamicUpdateConfig(backup_dir=tmp_path, **config)
        one = DynamicModelManager(
            TorchEngine(Serving()), "m", config=settings, evaluator=kept, on_mismatch="ledger"
        )
        asyncio.run(one.create_version("as it was"))
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def creeping(one: DynamicModelManager, steps: int) -> list[Event]:
    """Updates of which each loses 9 % of what was left."""
    return [update(one, "delay", 100 * (1 - 0.91**step)) for step in range(1, steps + 1)]


def test_many_small_losses_do_not_pass_where_one_great_one_would_not(scored: Make) -> None:
    one = scored()
    events = creeping(one, 20)
    assert [event.kind for event in events] == ["updated"] + ["update_rejected"] * 19
    evidence = events[1].body["evidence"]
    assert evidence["baseline"] == "best since the last named version"
    assert evidence["before"] == pytest.approx(0.9)


def test_the_best_is_known_after_a_restart(scored: Make) -> None:
    first = scored()
    assert creeping(first, 1)[0].kind == "updated"
    first.close()
    settings = DynamicUpdateConfig(backup_dir=first.config.backup_dir)
    again = DynamicModelManager(
        TorchEngine(Serving()), "m", config=settings, evaluator=kept, on_mismatch="ledger"
    )
    try:
        assert update(again, "delay", 17.2).kind == "update_rejected"
    finally:
        again.close()


def test_a_named_version_is_a_new_baseline(scored: Make) -> None:
    one = scored()
    assert update(one, "delay", 9.0).kind == "updated"
    asyncio.run(one.create_version("slower, and so be it"))
    assert update(one, "delay", 17.0).kind == "updated"


def test_what_gets_better_moves_the_baseline(scored: Make) -> None:
    one = scored()
    assert update(one, "delay", -9.0).kind == "updated"
    assert update(one, "delay", -1.0).kind == "updated"
    assert update(one, "delay", 2.0).kind == "update_rejected"


def test_what_another_process_made_better_moves_the_baseline_too(scored: Make) -> None:
    one, other = scored(), scored()
    assert update(other, "delay", -9.0).kind == "updated"
    one.log.catch_up()
    assert update(one, "delay", -1.0).kind == "updated"
    assert update(one, "delay", 2.0).kind == "update_rejected"


@pytest.mark.parametrize("policy", ["specification", "safe", "strict"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_never_visible(
    scored: Make, policy: str, value: float
) -> None:
    """However they come: a recorded checkpoint is no exception."""
    one = scored(policy=policy)
    before = one.log.live.state.value
    state = {name: tensor.clone() for name, tensor in one.log.state().items()}
    state["weight"][3] = value
    event = one.log.record(state)
    assert event.kind == "update_rejected"
    assert event.body["evidence"]["cause"] == "non_finite" and "weight" in event.body["reason"]
    assert one.log.live.state.value == before
    assert update(one, "weight", 1e38).kind == "updated", "large is not infinite"


def test_each_event_says_which_policy_ruled(scored: Make) -> None:
    one = scored(policy="safe")
    assert update(one, "delay", 1.0).body["evidence"]["policy"] == "safe"
    assert update(one, "delay", 50.0).body["evidence"]["policy"] == "safe"
    assert one.log.live.head.kind == "update_rejected"


def test_a_rollback_by_hand_forgets_no_best(scored: Make) -> None:
    """One is all it took to lose 9 % of what was left by then, again and again."""
    one = scored()
    worse = update(one, "delay", 9.0)
    one.log.rollback("v0")
    one.log.rollback(f"seq:{worse.seq}")
    assert update(one, "delay", 17.0).kind == "update_rejected"
    assert update(one, "delay", 9.5).kind == "updated"


def test_what_a_policy_undid_is_not_tried_again_though_the_best_cannot_be_read(
    scored: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database went away between a rollback and what follows from it: what was rolled back was
    forgotten with what was best."""
    one = scored()
    good = one.log.live.head.state_seq
    update(one, "delay", 5.0)

    def away(self: RuledGuard, event: Event) -> dict[str, float]:
        raise StorageError("away")

    with monkeypatch.context() as patched:
        patched.setattr(RuledGuard, "_best_before", away)
        back = RollBack(f"seq:{good}", Caller(actor="policy:specification"), DEGRADED, "slow", {})
        assert one.log.execute(back).kind == "rolled_back"
    assert update(one, "delay", 5.0).body["evidence"]["cause"] == "rejected_before"


def test_what_got_better_since_the_version_is_known_after_a_restart(scored: Make) -> None:
    first = scored()
    assert update(first, "delay", -9.0).kind == "updated"
    assert update(first, "delay", -1.0).kind == "updated"
    first.close()
    settings = DynamicUpdateConfig(backup_dir=first.config.backup_dir)
    again = DynamicModelManager(
        TorchEngine(Serving()), "m", config=settings, evaluator=kept, on_mismatch="ledger"
    )
    try:
        refused = update(again, "delay", 8.0)
        assert refused.kind == "update_rejected"
        assert refused.body["evidence"]["before"] == pytest.approx(0.981)
    finally:
        again.close()
