"""DynamicModelManager: the specification's face of the write path.

Async methods run the blocking core on one writer thread, so updates queue in order and never hold
up the event loop or an inference.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from weightledger.ledger import events, permissions
from weightledger.ledger.adapters import LoRAConfig
from weightledger.ledger.config import DynamicUpdateConfig, ModelConfig
from weightledger.ledger.engines import Engine, Live
from weightledger.ledger.engines.adapted import through
from weightledger.ledger.engines.inplace import InplaceEngine
from weightledger.ledger.errors import LedgerError, NotFound, OperationDisabled, PublishFailed
from weightledger.ledger.events import Event
from weightledger.ledger.history.versions import updates_since_active
from weightledger.ledger.ledger import Ledger
from weightledger.ledger.log import Log
from weightledger.ledger.monitoring.evaluation import Evaluator
from weightledger.ledger.monitoring.guard import MetricsGuard
from weightledger.ledger.monitoring.traffic import Traffic
from weightledger.ledger.projection.projector import OnMismatch
from weightledger.ledger.store import EventFilter
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.plans import Planner
from weightledger.ledger.writing.requests import IncrementalUpdateRequest
from weightledger.ledger.writing.writer import Committed

logger = logging.getLogger(__name__)

T = TypeVar("T")

_RECENT = 5


class DynamicModelManager:
    """Live weights of one model, changed only through its ledger.

    `engine_client` is an Engine, or a bare module: then updates land in that very module.
    `model_config` is a ModelConfig or the model's name. `evaluator` scores a module and gives
    metrics such as {"accuracy": 0.97}; candidates are scored before they are visible. `ledger`
    is one that is open already; otherwise the config's database is opened and owned.

    Raises WeightsMismatch when the weights equal no state of the model's log, unless
    `on_mismatch` is "ledger", which loads the log's state.
    """

    def __init__(
        self,
        engine_client: Engine | torch.nn.Module,
        model_config: ModelConfig | str,
        lora_config: LoRAConfig | None = None,
        config: DynamicUpdateConfig | None = None,
        *,
        evaluator: Evaluator | None = None,
        ledger: Ledger | None = None,
        on_mismatch: OnMismatch = "refuse",
    ) -> None:
        self.config = config or DynamicUpdateConfig()
        self.lora_config = lora_config
        self.model_name = model_config if isinstance(model_config, str) else model_config.model
        self.engine: Engine
        if isinstance(engine_client, torch.nn.Module):
            self.engine = InplaceEngine(engine_client)
        else:
            self.engine = engine_client
        self._owned = ledger is None
        if ledger is None:
            permissions.make_folder(Path(self.config.backup_dir))
            ledger = Ledger.open(self.config.url, blob_url=self.config.blob_url)
        self.ledger = ledger
        self.log: Log = ledger.model(
            self.model_name,
            engine=self.engine,
            on_mismatch=on_mismatch,
            alpha=self.config.snapshot_alpha,
            max_held_versions=self.config.max_held_versions,
            held_versions_wait_s=self.config.held_versions_wait_s,
        )
        self.traffic = Traffic()
        self._guard = MetricsGuard(
            self.log.projector,
            self.traffic,
            evaluator,
            self.config.auto_rollback_metrics,
            self.config.auto_rollback_threshold,
        )
        self._fault: str | None = None
        self._checkpointed = self._last_named()
        self.log.subscribe(self._written)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")

    def close(self) -> None:
        """Finish the write in progress; close the database if this manager opened it."""
        self._writer.shutdown()
        if self._owned:
            self.ledger.close()

    # Writes

    async def create_initial_version(
        self, description: str = "Initial version", *, caller: Caller = ANYONE
    ) -> str:
        """Name the state the model was registered with; the id of v0, also if it has its name."""
        self._require(self.config.enable_versioning, "versioning")
        event = await self._run(lambda: self.log.create_initial_version(description, caller=caller))
        return event.name

    async def create_version(self, description: str, *, caller: Caller = ANYONE) -> str:
        """Name the current state; the new version's id. Old names beyond max_versions retire."""
        return (await self.name_version(description, caller=caller)).name

    async def name_version(self, description: str, *, caller: Caller = ANYONE) -> Event:
        """`create_version`, giving its event."""
        self._require(self.config.enable_versioning, "versioning")
        return await self._run(lambda: self._create_version(description, caller))

    async def apply_incremental_update(self, request: IncrementalUpdateRequest) -> dict[str, Any]:
        """Apply an update; raises InvalidRequest or NotFound when it does not fit the model.

        The result has success, update_id, pre_metrics and post_metrics, with update_count when
        it was applied and a reason ("Automatic rollback …") when it was refused.
        """
        return self.update_result(await self.update(request))

    async def update(self, request: IncrementalUpdateRequest) -> Event:
        """`apply_incremental_update`, giving its event: `updated` or `update_rejected`."""
        self._require(self.config.enable_incremental_learning, "incremental learning")
        written = self.log.submit(request, self._guard)
        await self._run(self.log.drain)
        return written.result()

    async def update_batch(
        self,
        requests: Sequence[IncrementalUpdateRequest],
        *,
        caller: Caller = ANYONE,
        metadata: Mapping[str, Any] | None = None,
    ) -> Event:
        """Several updates as one atomic event, all or none; see `Log.apply_batch`."""
        self._require(self.config.enable_incremental_learning, "incremental learning")
        return await self._run(
            lambda: self.log.apply_batch(requests, self._guard, caller=caller, metadata=metadata)
        )

    async def pin_version(
        self, version_id: str, *, pinned: bool = True, caller: Caller = ANYONE
    ) -> Event:
        """Keep a version for ever, or let it be retired again; NotFound unless it is listed."""
        self._require(self.config.enable_versioning, "versioning")
        pin = self.log.pin if pinned else self.log.unpin
        return await self._run(lambda: pin(version_id, caller=caller))

    async def load_adapter(
        self, name: str, path: str | Path, inplace: bool = False, *, caller: Caller = ANYONE
    ) -> Event:
        """Serve a LoRA adapter beside the base, within `lora_config`; see `Log.load_adapter`."""
        event = await self._run(
            lambda: self.log.load_adapter(
                name, path, inplace=inplace, limits=self.lora_config, caller=caller
            )
        )
        return self._require_shown(event, "loaded")

    async def unload_adapter(self, name: str, *, caller: Caller = ANYONE) -> Event:
        """Stop serving an adapter; NotFound when it is not loaded."""
        event = await self._run(lambda: self.log.unload_adapter(name, caller=caller))
        return self._require_shown(event, "unloaded")

    async def merge_adapter(
        self, name: str, *, unload: bool = True, caller: Caller = ANYONE
    ) -> Event:
        """Add an adapter to the base weights, as one update; see `Log.merge_adapter`."""
        self._require(self.config.enable_incremental_learning, "incremental learning")
        return await self._run(
            lambda: self.log.merge_adapter(name, self._guard, unload=unload, caller=caller)
        )

    async def write(
        self,
        planner: Planner,
        *,
        caller: Caller = ANYONE,
        request_digest: bytes | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Event:
        """What `planner` works out on the newest state, as one atomic event; see `Log.write`.

        The candidate is scored as every other update is.
        """
        self._require(self.config.enable_incremental_learning, "incremental learning")
        return await self._run(
            lambda: self.log.write(
                planner,
                self._guard,
                caller=caller,
                request_digest=request_digest,
                metadata=metadata,
            )
        )

    async def rollback_to_version(
        self, version_id: str, *, caller: Caller = ANYONE
    ) -> dict[str, Any]:
        """Roll back to a version, or to any position that `ledger.history.positions` knows."""
        try:
            _, result = await self.rollback(version_id, caller=caller)
        except NotFound as error:
            return {"success": False, "reason": str(error)}
        return result

    async def rollback(
        self, version_id: str, *, caller: Caller = ANYONE
    ) -> tuple[Event, dict[str, Any]]:
        """`rollback_to_version`, giving its event too; NotFound for an unknown version."""
        self._require(self.config.enable_versioning, "versioning")
        return await self._run(lambda: self._rollback(version_id, caller))

    async def catch_up(self) -> None:
        """Show what other processes appended and look at the live weights.

        `fault` says why that failed, if it did.
        """
        try:
            await self._run(self.log.follow)
        except LedgerError as error:
            self._fault = str(error)
            raise
        self._fault = None

    # Reads

    @property
    def fault(self) -> str | None:
        """Why the live weights are not known to be the head of the log; None when they are."""
        remote = self.log.projector.remote
        return (remote.fault if remote is not None else None) or self._fault

    def update_result(self, event: Event) -> dict[str, Any]:
        """The specification's reply for an update's event, the same whenever it is asked for.

        An update that a remote engine could not be brought to has been rolled back.
        """
        remote = self.log.projector.remote
        answer = self.log.answer_to(event) if remote is not None else None
        return update_result(event, answer)

    def list_versions(self) -> list[dict[str, Any]]:
        """Listed versions, newest first, in the specification's five fields."""
        return [version.to_dict() for version in self.log.versions()]

    def get_status(self) -> dict[str, Any]:
        """Where the model stands, the configuration, and the metrics of the last five updates."""
        versions = self.log.versions()
        head = self.log.history.head()
        applied = self.log.history.events(EventFilter(kinds=[events.UPDATED]), limit=_RECENT)
        return {
            "current_version": next((v.version_id for v in versions if v.is_active), None),
            "updates_since_version": updates_since_active(self.log.history.store),
            "total_versions": len(versions),
            "total_updates": head.counts.applied,
            "config": {
                "max_versions": self.config.max_versions,
                "checkpoint_interval": self.config.checkpoint_interval,
                "auto_rollback_threshold": self.config.auto_rollback_threshold,
                "incremental_learning_enabled": self.config.enable_incremental_learning,
                "versioning_enabled": self.config.enable_versioning,
            },
            "recent_performance": [
                event.body["post_metrics"] for event in applied if event.body.get("post_metrics")
            ],
        }

    def metrics(self) -> dict[str, float]:
        """What is known of the live state now; what was not measured is absent."""
        return self._guard.current()

    @contextlib.contextmanager
    def lease(self, adapter: str | None = None) -> Iterator[Live]:
        """One committed state to infer with: `live.module`, `live.seq`, `live.digest`.

        With `adapter` the module is the base through that adapter, both of the same state;
        ModelNotFound when the state has none of that name.
        The time it is held counts as one inference in the latency and throughput metrics.
        """
        started = time.perf_counter()
        with self.engine.lease() as live:
            yield live if adapter is None else through(live, adapter)
        self.traffic.record(time.perf_counter() - started)

    # On the writer thread

    def _written(self, written: Committed) -> None:
        """After each event of this process: say what happened to updates, name a checkpoint."""
        event = written.event
        if event.kind == events.UPDATE_REJECTED:
            logger.warning(
                "refused %s of %s: %s", event.name, self.model_name, event.body["reason"]
            )
        elif event.kind == events.UPDATED:
            logger.debug("applied %s to %s", event.name, self.model_name)
            if self.config.enable_versioning:
                self._checkpoint()

    def _checkpoint(self) -> None:
        """Name and snapshot the state each `checkpoint_interval` updates.

        The update itself is durable and visible, so what fails here is logged, and due again at
        the next update.
        """
        applied, interval = self.log.live.head.counts.applied, self.config.checkpoint_interval
        if applied // interval <= self._checkpointed // interval:
            return
        try:
            self._create_version(f"Checkpoint after {applied} updates", ANYONE)
            self.log.snapshot()
        except LedgerError as error:
            logger.warning("no checkpoint after %d updates, will try again: %s", applied, error)

    def _create_version(self, description: str, caller: Caller) -> Event:
        event = self.log.create_version(
            description, caller=caller, performance_metrics=self._guard.current()
        )
        logger.info("created version %s of %s", event.name, self.model_name)
        self._checkpointed = max(self._checkpointed, event.counts.applied)
        try:
            self.log.retire_versions(keep=self.config.max_versions)
        except LedgerError as error:
            logger.warning("old versions stay listed, will try again: %s", error)
        return event

    def _last_named(self) -> int:
        """How many updates had been applied when the newest version was named."""
        head = self.log.live.head
        history = self.log.history
        newest = history.store.by_number(events.VERSIONS, head.counts.versions - 1)
        return newest.counts.applied if newest else 0

    def _rollback(self, position: str, caller: Caller) -> tuple[Event, dict[str, Any]]:
        try:
            event = self.log.rollback(position, caller=caller)
        except NotFound:
            raise NotFound(f"Version {position} not found", param="version_id") from None
        return event, self._rollback_result(event)

    def _rollback_result(self, event: Event) -> dict[str, Any]:
        self._require_shown(event, "rolled back")
        target = self.log.history.require(event.body["to_event"])
        logger.info("rolled %s back to %s", self.model_name, target.name)
        if event.body["version_id"] is not None:
            description = target.body["description"]
        else:
            description = f"State after {target.name}"
        return {
            "success": True,
            "rolled_back_to": event.body["to"],
            "timestamp": target.timestamp,
            "description": description,
        }

    def _require_shown(self, event: Event, done: str) -> Event:
        """The event; PublishFailed when a remote engine could not be brought to it."""
        answer = self.log.answer_to(event) if self.log.projector.remote is not None else None
        if answer is not None:
            raise PublishFailed(f"not {done}: {answer.body['reason']}")
        return event

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    def _require(self, enabled: bool, what: str) -> None:
        if not enabled:
            raise OperationDisabled(f"{what} is switched off by the configuration")


def update_result(event: Event, answer: Event | None = None) -> dict[str, Any]:
    """The specification's reply for an update's event and the rollback that answered it, if any."""
    metrics = {
        "pre_metrics": event.body["pre_metrics"],
        "post_metrics": event.body["post_metrics"],
    }
    if answer is not None:
        return {
            "success": False,
            "reason": f"Automatic rollback: {answer.body['reason']}",
            "update_id": event.name,
            **metrics,
        }
    if event.kind == events.UPDATED:
        return {
            "success": True,
            "update_id": event.name,
            "update_count": event.counts.applied,
            **metrics,
        }
    return {
        "success": False,
        "reason": event.body["reason"],
        "update_id": event.name,
        **metrics,
    }
