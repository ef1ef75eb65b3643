"""A failure at each step of a write: the old weights go on serving, and the log says what is so."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

from ledger import IncrementalUpdateRequest, Ledger, Log
from ledger.audit.verify import verify
from ledger.engines import Engine
from ledger.engines.adapted import AdapterEngine
from ledger.engines.inplace import InplaceEngine
from ledger.engines.torch import TorchEngine
from ledger.engines.transformers import TransformersEngine
from tests.conformance.engine_models import KINDS
from tests.conformance.test_engines import infer
from tests.text_models import tokenizer

KIND = KINDS["llama_tied"]
ENGINES: dict[str, Callable[[nn.Module], Engine]] = {
    "torch": TorchEngine,
    "inplace": InplaceEngine,
    "transformers": lambda module: TransformersEngine(module, tokenizer()),
}
UPDATE = IncrementalUpdateRequest("model.norm.weight", 1.0, 0.5, idempotency_key="once")


class Broken(Exception):
    """What breaks in these tests."""


def breaks(*_: Any, **__: Any) -> Any:
    raise Broken


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def log(request: pytest.FixtureRequest, sqlite_url: str) -> Iterator[Log]:
    with Ledger.open(sqlite_url) as ledger:
        yield ledger.model("tiny", engine=request.param(KIND.make().eval()))


def served(log: Log) -> tuple[int, bytes, bytes]:
    """Seq, digest and output of what a reader gets right now."""
    with log.projector.engine.lease() as live:
        return live.seq, live.digest, infer(live.module, KIND.given)


def updated(log: Log) -> tuple[int, bytes, bytes]:
    """What a reader gets once the update is applied and shown, checked against the log."""
    after = served(log)
    assert after[:2] == (1, log.history.require(1).state_after)
    assert log.verify_live()[1].value == after[1]
    assert verify(log.history).problem is None
    return after


def preparing(log: Log) -> str:
    """The method by which the projector has this engine prepare a version."""
    return "prepare_with" if isinstance(log.projector.engine, AdapterEngine) else "prepare"


@pytest.mark.parametrize("step", ["prepare", "append"])
def test_before_the_append_nothing_happened(
    log: Log, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = served(log)
    with monkeypatch.context() as patch:
        if step == "prepare":
            patch.setattr(log.projector.engine, preparing(log), breaks)
        else:
            patch.setattr(log.history.store, step, breaks)
        with pytest.raises(Broken):
            log.apply(UPDATE)
        assert served(log) == before
        assert log.history.head().seq == 0
        assert log.history.store.by_key(log.history.model_id, "once") is None
    # What broke works again: so does the update, under the same key.
    assert log.apply(UPDATE).seq == 1
    assert updated(log)[2] != before[2]


def test_after_the_append_the_event_stands_and_the_old_weights_serve_until_it_is_shown(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = served(log)
    with monkeypatch.context() as patch:
        patch.setattr(log.projector.engine, "publish", breaks)
        with pytest.raises(Broken):
            log.apply(UPDATE)
        assert served(log) == before
        assert log.live.head.seq == 0
        assert log.history.head().seq == 1
        # It is still broken for who follows the log, and for who asks again.
        with pytest.raises(Broken):
            log.catch_up()
        with pytest.raises(Broken):
            log.apply(UPDATE)
        assert served(log) == before
        assert log.history.head().seq == 1
    log.catch_up()
    after = updated(log)
    assert after[2] != before[2]
    # The same key is the same event, not another one.
    assert log.apply(UPDATE).seq == 1
    assert served(log) == after


def test_a_write_after_a_failed_publish_shows_both(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(log.projector.engine, "publish", breaks)
        with pytest.raises(Broken):
            log.apply(UPDATE)
    event = log.apply(IncrementalUpdateRequest("model.norm.weight", 2.0, 0.5))
    assert event.seq == 2
    seq, digest, _ = served(log)
    assert (seq, digest) == (2, event.state_after)
    assert log.verify_live()[1].value == digest
    assert verify(log.history).problem is None


def test_a_failed_rollback_leaves_the_state_it_started_from(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.apply(UPDATE)
    before = served(log)
    with monkeypatch.context() as patch:
        patch.setattr(log.projector.engine, preparing(log), breaks)
        with pytest.raises(Broken):
            log.rollback("seq:0")
    assert served(log) == before
    assert log.history.head().seq == 1
    log.rollback("seq:0")
    assert served(log)[:2] == (2, log.history.require(0).state_after)
