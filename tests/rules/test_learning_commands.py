"""What learning asks of the ledger is data: commands with their caller and a digest for ever."""

from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest
import torch

from weightledger import Caller
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.handlers import row_of
from weightledger.rules import DTESNLearningConfig, FeedbackThresholds, Fixed, PairedGate
from weightledger.rules.dtesn.consolidation import Consolidate, UpdateFisher
from weightledger.rules.dtesn.forgetting import Forget
from weightledger.rules.dtesn.plan import Learn
from weightledger.rules.dtesn.request import LearningRequest
from weightledger.rules.selectors import Feedback

KEYED = Caller(idempotency_key="k")
SENT = {"delta": torch.ones(2, 3)}
PLAIN = LearningRequest("w", SENT, "request", FeedbackThresholds())
WHOLE = LearningRequest(
    "w",
    SENT,
    "request",
    Fixed("hebbian-delta"),
    {"x": 1},
    0.5,
    "main",
    Feedback(0.1, -2.0),
    PairedGate(),
    8,
    None,
    {"request_id": "r"},
)
ONES = torch.ones(2)

# Stored headers hold these, and a retry is compared with them: the bytes are for ever.
FROZEN: dict[str, tuple[Command, str]] = {
    "lesson": (
        Learn(PLAIN, DTESNLearningConfig(), caller=KEYED),
        "c3956678b4824d5a1f0375afd3d7a67db2129b70a30f9755f00ff5a79dae29f2",
    ),
    "whole lesson": (
        Learn(WHOLE, DTESNLearningConfig(), caller=KEYED),
        "da79278d20b6f5d6394dfa99a2e9ae37da1a589d55fd0bc9cd44cdebdf9e6f20",
    ),
    "forget": (
        Forget("w", "main", KEYED),
        "337f8f9304a45ea8e3df949c6d4723862fbbca1d49b0d1a39604d3956b3d38c8",
    ),
    "fisher": (
        UpdateFisher("w", None, ONES, 0.5, 0.9, KEYED),
        "561ed25edb0d20c31dc54d3b5eaa473591201bc623ffbfd228208937f482597c",
    ),
    "fisher at": (
        UpdateFisher("w", ONES, ONES, 0.5, 0.9, KEYED),
        "5dfef61f168e0ae837bca6faed3f9e389fc4afff68ad7b4247f07a2ce9241769",
    ),
    "consolidate": (
        Consolidate("w", caller=KEYED),
        "467e0118be72706a2b2404db59ad78ef89466585221d23461df1319ac594d35c",
    ),
    "consolidate at": (
        Consolidate("w", ONES, ONES, KEYED),
        "af4562e2a31c44ab89c3aae2d31e1d1817e47086c88358de788fa476a4238014",
    ),
}


@pytest.mark.parametrize(("command", "digest"), FROZEN.values(), ids=FROZEN)
def test_the_digest_of_a_request_never_changes(command: Command, digest: str) -> None:
    assert command.digest is not None and command.digest.hex() == digest


@pytest.mark.parametrize("command", [one for one, _ in FROZEN.values()], ids=FROZEN)
def test_commands_are_data_that_the_table_handles(command: Any) -> None:
    assert is_dataclass(command)
    with pytest.raises(FrozenInstanceError):
        command.caller = Caller()
    held = [getattr(command, one.name) for one in fields(command)]
    lesson = [getattr(PLAIN, one.name) for one in fields(PLAIN)]
    assert not any(callable(value) for value in held + lesson)
    assert row_of(command).switch == "incremental learning"


def test_a_lesson_is_hashed_for_retries_only() -> None:
    assert Learn(PLAIN, DTESNLearningConfig()).digest is None
