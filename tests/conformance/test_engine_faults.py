"""A failure at each step of a write: the old weights go on serving, and the log says what is so.

One suite for every engine there is, those that drive another server's process too.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.conformance.engine_models import KINDS
from tests.conformance.test_engines import bits, infer
from tests.engines.conftest import folder, shared_replica  # noqa: F401
from tests.engines.replica import Replica, driving, update
from tests.text_models import tokenizer
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.engines import Engine
from weightledger.ledger.engines.adapted import AdapterEngine
from weightledger.ledger.engines.inplace import InplaceEngine
from weightledger.ledger.engines.state import StateEngine
from weightledger.ledger.engines.torch import TorchEngine
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.errors import Conflict, EngineUnavailable, InvalidRequest
from weightledger.ledger.tensors.lanes import spec_of

KIND = KINDS["llama_tied"]
EMBEDDED: dict[str, Callable[[nn.Module], Engine]] = {
    "torch": TorchEngine,
    "inplace": InplaceEngine,
    "state": StateEngine,
    "transformers": lambda module: TransformersEngine(module, tokenizer()),
}
WEIGHT = "model.norm.weight"


class Broken(Exception):
    """What breaks in these tests."""


def breaks(*_: Any, **__: Any) -> Any:
    raise Broken


@dataclass(frozen=True)
class Subject:
    """A log with the engine under test, two updates of its model, and what a reader gets."""

    log: Log
    update: IncrementalUpdateRequest
    another: IncrementalUpdateRequest
    output: Callable[[Any], Any]

    def served(self) -> tuple[int, bytes, Any]:
        """Seq, digest and output of what a reader gets right now."""
        with self.log.projector.engine.lease() as live:
            return live.seq, live.digest, self.output(live)

    def updated(self) -> tuple[int, bytes, Any]:
        """What a reader gets once the update is applied and shown, checked against the log."""
        after = self.served()
        assert after[:2] == (1, self.log.history.require(1).state_after)
        assert self.log.verify_live()[1].value == after[1]
        assert verify(self.log.history).problem is None
        return after

    @property
    def preparing(self) -> str:
        """The method by which the projector has this engine prepare a version."""
        engine = self.log.projector.engine
        return "prepare_with" if isinstance(engine, AdapterEngine) else "prepare"


def inferred(live: Any) -> bytes:
    return infer(live.module, KIND.given)


def held(live: Any) -> bytes:
    """Where there is no module to infer with."""
    return b"".join(bits(tensor) for tensor in live.tensors.values())


@pytest.fixture(params=EMBEDDED)
def embedded(request: pytest.FixtureRequest, sqlite_url: str) -> Iterator[Subject]:
    once = IncrementalUpdateRequest(WEIGHT, 1.0, 0.5, idempotency_key="once")
    another = IncrementalUpdateRequest(WEIGHT, 2.0, 0.5)
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model("tiny", engine=EMBEDDED[request.param](KIND.make().eval()))
        yield Subject(log, once, another, held if request.param == "state" else inferred)


@pytest.fixture
def remote(shared_replica: Replica, folder: Path) -> Iterator[Subject]:  # noqa: F811
    shared_replica.ensure_up()
    shared_replica.heal()

    def answers(_: Any) -> str:
        return json.dumps(shared_replica.answers())

    with driving(shared_replica, folder) as manager:
        yield Subject(manager.log, update(1, idempotency_key="once"), update(2), answers)


class EngineFaults:
    """The suite; a subclass says which engines are its subjects."""

    @pytest.mark.parametrize("step", ["prepare", "append"])
    def test_before_the_append_nothing_happened(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        before = subject.served()
        with monkeypatch.context() as patch:
            if step == "prepare":
                patch.setattr(subject.log.projector.engine, subject.preparing, breaks)
            else:
                patch.setattr(subject.log.history.store, step, breaks)
            with pytest.raises(Broken):
                subject.log.apply(subject.update)
            assert subject.served() == before
            assert subject.log.history.head().seq == 0
            assert subject.log.history.store.by_key("once") is None
        # What broke works again: so does the update, under the same key.
        assert subject.log.apply(subject.update).seq == 1
        assert subject.updated()[2] != before[2]

    def test_after_the_append_the_event_stands_and_the_old_weights_serve_until_it_is_shown(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = subject.served()
        with monkeypatch.context() as patch:
            patch.setattr(subject.log.projector.engine, "publish", breaks)
            with pytest.raises(EngineUnavailable, match="is recorded, but"):
                subject.log.apply(subject.update)
            assert subject.served() == before
            assert subject.log.live.head.seq == 0
            assert subject.log.history.head().seq == 1
            # It is still broken for who follows the log, and for who asks again.
            with pytest.raises(Broken):
                subject.log.catch_up()
            with pytest.raises(Broken):
                subject.log.apply(subject.update)
            assert subject.served() == before
            assert subject.log.history.head().seq == 1
        subject.log.catch_up()
        after = subject.updated()
        assert after[2] != before[2]
        # The same key is the same event, not another one.
        assert subject.log.apply(subject.update).seq == 1
        assert subject.served() == after

    def test_a_write_after_a_failed_publish_shows_both(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(subject.log.projector.engine, "publish", breaks)
            with pytest.raises(EngineUnavailable, match="is recorded, but"):
                subject.log.apply(subject.update)
        event = subject.log.apply(subject.another)
        assert event.seq == 2
        seq, digest, _ = subject.served()
        assert (seq, digest) == (2, event.state_after)
        assert subject.log.verify_live()[1].value == digest
        assert verify(subject.log.history).problem is None

    def test_a_failed_rollback_leaves_the_state_it_started_from(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        subject.log.apply(subject.update)
        before = subject.served()
        with monkeypatch.context() as patch:
            patch.setattr(subject.log.projector.engine, subject.preparing, breaks)
            with pytest.raises(Broken):
                subject.log.rollback("seq:0")
        assert subject.served() == before
        assert subject.log.history.head().seq == 1
        subject.log.rollback("seq:0")
        assert subject.served()[:2] == (2, subject.log.history.require(0).state_after)

    def test_a_version_prepared_before_another_was_shown_is_refused(self, subject: Subject) -> None:
        engine = subject.log.projector.engine
        name = subject.update.parameter_name
        stale = engine.prepare({name: engine.tensor(name).clone() + 1})
        subject.log.apply(subject.update)
        after = subject.served()
        with pytest.raises(Conflict, match="another version was published"):
            engine.publish(stale, seq=2, digest=bytes(32))
        assert subject.served() == after
        assert subject.log.verify_live()[1].value == after[1]

    def test_what_is_not_the_models_is_not_prepared(self, subject: Subject) -> None:
        engine = subject.log.projector.engine
        before = subject.served()
        name, spec = next(iter(engine.specs().items()))
        assert spec_of(name, engine.tensor(name)) == spec
        for tensors in (
            {"nope": torch.zeros(1)},
            {name: torch.zeros(3, 5, 7)},
            {name: engine.tensor(name).to(torch.float64)},
        ):
            with pytest.raises(InvalidRequest):
                engine.prepare(tensors)
        assert subject.served() == before


class TestEmbedded(EngineFaults):
    @pytest.fixture
    def subject(self, embedded: Subject) -> Subject:
        return embedded


class TestRemote(EngineFaults):
    @pytest.fixture
    def subject(self, remote: Subject) -> Subject:
        return remote
