"""The limit on past versions that readers hold: updates wait for it, readers and rollbacks never.

The readers are real generations that have long to go.
"""

import asyncio
import gc
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import patient
from tests.in_process import listening
from tests.text_models import llama, tokenizer
from tests.waiting import PATIENCE_S, until
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    InplaceEngine,
)
from weightledger.ledger.engines.text import Sampling
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.errors import InvalidRequest, Unavailable

TOUCHED = "model.norm.weight"


class Readers:
    """Generations on leases of a manager, each going on until it is told to stop."""

    def __init__(self, manager: DynamicModelManager) -> None:
        self._manager = manager
        self._going: list[tuple[threading.Event, threading.Thread]] = []

    def start(self) -> None:
        """One more generation, which holds its version when this returns."""
        stop, first = threading.Event(), threading.Event()

        def emit(text: str) -> bool:
            first.set()
            return not stop.is_set()

        def generate() -> None:
            generates = self._manager.engine.generates
            with self._manager.lease() as live:
                generates.generate(live.module, [0, 5], Sampling(100_000), emit)

        thread = threading.Thread(target=generate)
        thread.start()
        until(first.is_set)
        self._going.append((stop, thread))

    def stop(self, number: int = 0) -> None:
        """End the oldest one (or another)."""
        stop, thread = self._going.pop(number)
        stop.set()
        thread.join()

    def stop_all(self) -> None:
        while self._going:
            self.stop()


def managing(folder: Path, **config: Any) -> DynamicModelManager:
    model = llama(max_position_embeddings=200_000, eos_token_id=None)
    return DynamicModelManager(
        TransformersEngine(model, tokenizer()),
        "tiny",
        config=DynamicUpdateConfig(backup_dir=folder, max_held_versions=3, **config),
    )


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[DynamicModelManager]:
    made = managing(tmp_path, held_versions_wait_s=0.05)
    yield made
    made.close()


@pytest.fixture
def readers(manager: DynamicModelManager) -> Iterator[Readers]:
    made = Readers(manager)
    yield made
    made.stop_all()


def update(manager: DynamicModelManager, **more: Any) -> dict[str, Any]:
    request = IncrementalUpdateRequest(TOUCHED, 1.0, 0.01, **more)
    return asyncio.run(manager.apply_incremental_update(request))


def hold_three(manager: DynamicModelManager, readers: Readers) -> None:
    for _ in range(3):
        readers.start()
        update(manager)
    assert manager.engine.held_versions() == 3


def test_at_the_limit_updates_are_refused_without_an_event_and_readers_are_not(
    manager: DynamicModelManager, readers: Readers
) -> None:
    hold_three(manager, readers)
    with manager.lease() as live:
        digest = live.digest
    head = manager.log.history.head()
    with pytest.raises(Unavailable, match=r"still hold 3 past versions.*max_held_versions is 3"):
        update(manager, idempotency_key="once")
    assert manager.log.history.head() == head
    with manager.lease() as live:
        assert live.digest == digest
    readers.start()
    readers.stop()
    # The refusal used up no key.
    assert update(manager, idempotency_key="once")["success"]


class WatchedQueue(queue.SimpleQueue[None]):
    """Says when somebody starts to wait for it."""

    def __init__(self) -> None:
        self.awaited = threading.Event()

    def get(self, block: bool = True, timeout: float | None = None) -> None:
        self.awaited.set()
        return super().get(block, timeout)


def test_an_update_waits_for_a_reader_to_finish(tmp_path: Path) -> None:
    manager = managing(tmp_path, held_versions_wait_s=60)
    manager.engine._versions._released = watched = WatchedQueue()
    readers = Readers(manager)
    try:
        hold_three(manager, readers)
        applied: list[dict[str, Any]] = []
        writer = threading.Thread(target=lambda: applied.append(update(manager)))
        writer.start()
        until(watched.awaited.is_set)
        assert not applied
        readers.stop()
        writer.join(PATIENCE_S)
        assert applied[0]["success"]
    finally:
        readers.stop_all()
        manager.close()


def test_a_rollback_does_not_wait(manager: DynamicModelManager, readers: Readers) -> None:
    hold_three(manager, readers)
    rolled = asyncio.run(manager.rollback_to_version("seq:0"))
    assert rolled["success"]
    with manager.lease() as live:
        assert live.digest == manager.log.history.require(0).state_after


def test_what_another_process_wrote_is_shown_when_there_is_room(
    manager: DynamicModelManager, readers: Readers, tmp_path: Path
) -> None:
    hold_three(manager, readers)
    other = managing(tmp_path)
    update(other)
    other.close()
    with pytest.raises(Unavailable):
        asyncio.run(manager.catch_up())
    assert "past versions" in (manager.fault or "")
    readers.stop()
    asyncio.run(manager.catch_up())
    assert manager.fault is None
    assert manager.log.live.head == manager.log.history.head()


def test_over_http_it_is_503_with_retry_after(
    manager: DynamicModelManager, readers: Readers
) -> None:
    hold_three(manager, readers)
    with listening(manager) as url:
        body = {"parameter_name": TOUCHED, "update_data": 1.0}
        reply = patient.post(f"{url}/v1/models/incremental_update", json=body)
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert reply.json()["error"]["code"] == "unavailable"
        readers.stop()
        assert patient.post(f"{url}/v1/models/incremental_update", json=body).is_success


def parameter_bytes() -> int:
    """Memory of every parameter that is alive in this process, each storage once."""
    gc.collect()
    storages = {
        held.untyped_storage().data_ptr(): held.untyped_storage().nbytes()
        for held in gc.get_objects()
        if type(held) is torch.nn.Parameter
    }
    return sum(storages.values())


def test_held_versions_cost_the_tensors_that_changed_and_nothing_else(
    manager: DynamicModelManager, readers: Readers
) -> None:
    update(manager)
    before = parameter_bytes()
    hold_three(manager, readers)
    touched = manager.log.specs[TOUCHED].nbytes
    assert parameter_bytes() == before + 3 * touched
    readers.stop(1)
    assert parameter_bytes() == before + 2 * touched
    readers.stop_all()
    assert manager.engine.held_versions() == 0
    assert parameter_bytes() == before


class Circular(torch.nn.Linear):
    """Refers to itself, so that its versions go only when garbage is collected."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.run = self.forward


def test_versions_that_only_await_collection_do_not_count(tmp_path: Path) -> None:
    from weightledger import TorchEngine

    config = DynamicUpdateConfig(backup_dir=tmp_path, max_held_versions=2, held_versions_wait_s=0)
    manager = DynamicModelManager(TorchEngine(Circular()), "circular", config=config)
    gc.disable()
    try:
        for _ in range(8):
            request = IncrementalUpdateRequest("bias", 1.0)
            asyncio.run(manager.apply_incremental_update(request))
    finally:
        gc.enable()
        manager.close()


def test_in_place_engines_know_no_limit(tmp_path: Path) -> None:
    config = DynamicUpdateConfig(backup_dir=tmp_path, max_held_versions=1, held_versions_wait_s=0)
    module = torch.nn.Linear(4, 4)
    manager = DynamicModelManager(InplaceEngine(module), "inplace", config=config)
    for _ in range(3):
        asyncio.run(manager.apply_incremental_update(IncrementalUpdateRequest("bias", 1.0)))
    assert manager.engine.wait_for_readers(0, 0)
    manager.close()


@pytest.mark.parametrize("field", ["max_held_versions", "held_versions_wait_s"])
def test_a_limit_that_makes_no_sense_is_refused(field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        DynamicUpdateConfig(**{field: -1})
