"""What a log can be asked without an engine, and that a log with one answers the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from weightledger import Ledger, Log
from weightledger.ledger.questions import Questions
from weightledger.ledger.writing.caller import Caller

ASKED: dict[str, Callable[[Questions], Any]] = {
    "state": lambda ask: {name: one.tolist() for name, one in ask.state("seq:1").items()},
    "events": lambda ask: [event.name for event in ask.events(kinds=["updated"])],
    "activity": lambda ask: [(one.kind, one.events) for one in ask.activity()],
    "versions": lambda ask: [one.version_id for one in ask.versions()],
    "follow": lambda ask: next(iter(ask.follow(0))).seq,
    "wait": lambda ask: ask.wait(0, 0.0),
    "approvals": lambda ask: ask.approvals(),
    "verify": lambda ask: ask.verify().ok,
    "diff": lambda ask: [one.name for one in ask.diff("seq:0").tensors],
    "each": lambda ask: len(ask.each("seq:0").columns),
    "what_if": lambda ask: ask.what_if(["update_3"]).state.digest.value,
    "replayed": lambda ask: ask.replayed("seq:1").digest.value,
    "bisect": lambda ask: ask.bisect("seq:0", "head", lambda at: at.seq < 2)["first_bad"]["seq"],
    "blame": lambda ask: len(ask.blame("w").touches),
    "metrics": lambda ask: ask.metrics(),
    "holds": lambda ask: len(ask.holds()),
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    url = f"sqlite:///{tmp_path_factory.mktemp('asked') / 'ledger.db'}"
    with Ledger.open(url) as ledger:
        log = ledger.model("m", base={"w": torch.zeros(4)})
        for value in (1.0, 2.0, 3.0):
            log.record({"w": torch.full((4,), value)})
        log.create_version("asked")
        log.hold("head", caller=Caller(actor="ana", reason="asked for"))
        yield log


def test_every_question_is_tried_here() -> None:
    public = {name for name in dir(Questions) if not name.startswith("_")}
    assert public == set(ASKED)


@pytest.mark.parametrize("name", ASKED)
def test_questions_need_no_engine_and_a_log_answers_them_too(asked: Log, name: str) -> None:
    without_engine = Questions(asked.history)
    answer = ASKED[name](without_engine)
    assert answer == ASKED[name](asked)
    assert answer or name in {"approvals", "metrics"}
