"""DynamicModelManager: the specification's face of the write path.

Async methods run the blocking core on one writer thread, so updates queue in order and never hold
up the event loop or an inference.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch

from weightledger.ledger import events, forks, permissions
from weightledger.ledger.adapters import LoRAConfig
from weightledger.ledger.checkpoints import Checkpoints
from weightledger.ledger.config import DynamicUpdateConfig, ModelConfig
from weightledger.ledger.engines import Engine, Live
from weightledger.ledger.engines.adapted import through
from weightledger.ledger.engines.inplace import InplaceEngine
from weightledger.ledger.errors import (
    Ambiguous,
    InvalidRequest,
    LedgerError,
    NotFound,
    PublishFailed,
    Unavailable,
)
from weightledger.ledger.events import Event
from weightledger.ledger.fleet.follower import Follower, Following
from weightledger.ledger.history.approvals import Approval
from weightledger.ledger.history.approvals import find as find_approval
from weightledger.ledger.ledger import Ledger
from weightledger.ledger.log import Log
from weightledger.ledger.monitoring import journal
from weightledger.ledger.monitoring.collector import Collector
from weightledger.ledger.monitoring.evaluation import Evaluator
from weightledger.ledger.monitoring.guard import MetricsGuard
from weightledger.ledger.monitoring.leasing import MeasuredLease, PlainLease
from weightledger.ledger.monitoring.observing import Observing
from weightledger.ledger.monitoring.policy_files import policy_of
from weightledger.ledger.monitoring.pushing import Pushed, push
from weightledger.ledger.monitoring.ruled import RuledGuard
from weightledger.ledger.monitoring.samples import Measuring
from weightledger.ledger.monitoring.stored import StoredMetrics
from weightledger.ledger.monitoring.supervision import Supervision, require_consistent
from weightledger.ledger.projection.starting import OnMismatch
from weightledger.ledger.standing import ManagerReads
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.commands import (
    Command,
    CreateInitialVersion,
    CreateVersion,
    LoadAdapter,
    MergeAdapter,
    RollBack,
    UnloadAdapter,
)
from weightledger.ledger.writing.handlers import row_of
from weightledger.ledger.writing.handover import Handover
from weightledger.ledger.writing.policy import Policy, preparing_of
from weightledger.ledger.writing.requests import IncrementalUpdateRequest
from weightledger.ledger.writing.update_commands import is_small, update_command

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DAY_S = 86_400

# Moves that were asked for as such: not to arrive at them is an error, not a result.
_ASKED_FOR = {
    events.ROLLED_BACK: "rolled back",
    events.ADAPTER_LOADED: "loaded",
    events.ADAPTER_UNLOADED: "unloaded",
}


class DynamicModelManager(ManagerReads, forks.OfItsProcess):
    """Live weights of one model, changed only through its ledger.

    `engine_client` is an Engine, or a bare module: then updates land in that very module.
    `model_config` is a ModelConfig or the model's name. `evaluator` scores a module and gives
    metrics such as {"accuracy": 0.97}; candidates are scored before they are visible. `ledger`
    is one that is open already; otherwise the config's database is opened and owned.

    Raises WeightsMismatch when the weights equal no state of the model's log, unless
    `on_mismatch` is "ledger", which loads the log's state, or "record", which records them as an
    event, judged like any other.

    With `following` it is a replica: it shows what others write, judges and writes nothing, and
    every write raises OperationDisabled.
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
        following: Following | None = None,
    ) -> None:
        _require_parts(engine_client, model_config)
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
        self.collector = Collector()
        self.evaluator = evaluator
        metrics, threshold = self.config.auto_rollback_metrics, self.config.auto_rollback_threshold
        policy = policy_of(self.config.policy)
        require_consistent(policy, threshold)
        threshold = threshold if policy.acts else 0.0
        inner = MetricsGuard(
            self.engine,
            self.collector,
            evaluator,
            metrics,
            threshold,
            alpha=self.config.evaluator_alpha if policy.acts else 0.0,
            timeout_s=self.config.evaluator_timeout_s,
        )
        self._guard = RuledGuard(inner, policy, metrics, threshold)
        self.log: Log = ledger.model(
            self.model_name,
            engine=self.engine,
            on_mismatch=on_mismatch if following is None else "ledger",
            alpha=self.config.snapshot_alpha,
            max_held_versions=self.config.max_held_versions,
            held_versions_wait_s=self.config.held_versions_wait_s,
            policy=Policy(
                self._guard,
                lora_config,
                updates=self.config.enable_incremental_learning,
                versions=self.config.enable_versioning,
                operands=self.config.keep_operands,
                two_person=self.config.two_person_rule,
                prepare=preparing_of(self.config),
                read_only=None if following is None else following.refusal,
            ),
        )
        if following is not None:
            self.collector.serve_as(following.replica)
        if self.config.metrics_retention_days > 0:
            stored = StoredMetrics(self.log.history.store.metrics)
            keep_s = self.config.metrics_retention_days * _DAY_S
            # A replica adds rows, and has no right to drop any.
            self.collector.store_in(stored, keep_s if following is None else None)
        self.supervision = Supervision(
            self.log,
            self.log.projector,
            self.collector,
            self._guard,
            policy,
            metrics,
            threshold,
            told=following is None,
            drifting=self.config.drift_metrics,
            detector=self.config.drift_detector,
        )
        self.log.subscribe(self.supervision.after, self.supervision.followed)
        self.log.subscribe(self._guard.after, self._guard.followed)
        self.log.subscribe(journal.record)
        self.log.subscribe(Observing(self.collector).after)
        self.log.subscribe(Checkpoints(self.log, self.config).after)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        self._handover = Handover(self.log.submit, self.log.drain, self._writer)
        self._closed = self._left = False
        forks.tell(self)
        if following is None:
            self.log.carry_out_approved()
        else:
            self.follower = Follower(self.log, following, self.collector.in_rollout)

    def forked(self) -> None:
        """In a fork: live weights can be read there, and nothing else; see `ledger.forks`."""
        self._left = True

    def close(self) -> None:
        """Finish the write in progress; close the database if this manager opened it."""
        self._closed = True
        if self._left:  # what there is to finish is the other process's
            return
        if self.follower is not None:
            self.follower.close()
        self._writer.shutdown()
        self.collector.close()
        self.supervision.close()
        if self._owned:
            self.ledger.close()

    # Writes

    async def execute(self, command: Command) -> Event:
        """Carry out a command (see `ledger.writing.commands`), and give its event.

        What waits by the time the writer comes to it is appended together. PublishFailed when a
        remote engine could not be brought to another state that was asked for; Unavailable after
        `close`.
        """
        if self._closed:
            raise Unavailable("this manager was closed, and writes nothing any more")
        if row_of(command).read is not None:
            command = await asyncio.to_thread(self.log.ready, command)
        event = await self._handover.carry_out(command)
        if event.kind in _ASKED_FOR and (answer := self.answer_to(event)) is not None:
            raise PublishFailed(f"not {_ASKED_FOR[event.kind]}: {answer.body['reason']}")
        return event

    async def create_initial_version(
        self, description: str = "Initial version", *, caller: Caller = ANYONE
    ) -> str:
        """Name the state the model was registered with; the id of v0, also if it has its name."""
        return (await self.execute(CreateInitialVersion(description, caller))).name

    async def create_version(self, description: str, *, caller: Caller = ANYONE) -> str:
        """Name the current state; the new version's id. Old names beyond max_versions retire."""
        return (await self.execute(CreateVersion(description, caller))).name

    async def apply_incremental_update(self, request: IncrementalUpdateRequest) -> dict[str, Any]:
        """Apply an update; raises InvalidRequest or NotFound when it does not fit the model.

        The result has success, update_id, pre_metrics and post_metrics, with update_count when
        it was applied and a reason ("Automatic rollback …") when it was refused.
        """
        return self.update_result(await self.update(request))

    async def update(self, request: IncrementalUpdateRequest) -> Event:
        """`apply_incremental_update`, giving its event: `updated` or `update_rejected`."""
        log = self.log
        if is_small(request):
            command = update_command(request, log.specs, log.first_names)
        else:
            command = await asyncio.to_thread(update_command, request, log.specs, log.first_names)
        return await self.execute(command)

    async def rollback_to_version(
        self, version_id: str, *, caller: Caller = ANYONE
    ) -> dict[str, Any]:
        """Roll back to a version, or to any position that `ledger.history.positions` knows."""
        try:
            event = await self.rollback(version_id, caller=caller)
        except NotFound as error:
            return {"success": False, "reason": str(error)}
        return self.rollback_result(event)

    async def rollback(self, version_id: str, *, caller: Caller = ANYONE) -> Event:
        """`rollback_to_version`, giving its event; NotFound for an unknown version.

        Its words are the specification's, but for the digits of several states, which are listed.
        """
        try:
            return await self.execute(RollBack(version_id, caller))
        except Ambiguous:
            raise
        except NotFound:
            raise NotFound(f"Version {version_id} not found", param="version_id") from None

    async def load_adapter(
        self, name: str, path: str | Path, *, inplace: bool = False, caller: Caller = ANYONE
    ) -> Event:
        """Serve a LoRA adapter beside the base, within `lora_config`; see `Log.load_adapter`."""
        return await self.execute(LoadAdapter(name, path, inplace, caller))

    async def unload_adapter(self, name: str, *, caller: Caller = ANYONE) -> Event:
        """Stop serving an adapter; NotFound when it is not loaded."""
        return await self.execute(UnloadAdapter(name, caller))

    async def merge_adapter(
        self, name: str, *, unload: bool = True, caller: Caller = ANYONE
    ) -> Event:
        """Add an adapter to the base weights, as one update: `updated` or `update_rejected`."""
        return await self.execute(MergeAdapter(name, unload, caller))

    async def promote_trial(self, trial: str, *, caller: Caller = ANYONE) -> Event:
        """Let every request meet the state on trial; NotFound unless that trial runs."""
        return await self._run(lambda: self.supervision.promote(trial, caller))

    async def abort_trial(self, trial: str, *, caller: Caller = ANYONE) -> Event:
        """Roll the state on trial back; NotFound unless that trial runs."""
        return await self._run(lambda: self.supervision.abort(trial, caller))

    async def start_rollout(self, to: str, percent: int, *, caller: Caller = ANYONE) -> Event:
        """Have some of the replicas show another state; see `Log.start_rollout`."""
        return await self._run(lambda: self.log.start_rollout(to, percent, caller=caller))

    async def advance_rollout(
        self, percent: int, rollout: str | None = None, *, caller: Caller = ANYONE
    ) -> Event:
        """Have more of the replicas show it, or fewer; see `Log.advance_rollout`."""
        return await self._run(lambda: self.log.advance_rollout(percent, rollout, caller=caller))

    async def end_rollout(
        self, status: str, rollout: str | None = None, *, caller: Caller = ANYONE
    ) -> Event:
        """Have every replica follow the head again; see `Log.end_rollout`."""
        return await self._run(lambda: self.log.end_rollout(status, rollout, caller=caller))

    async def approve(self, approval_id: str, *, caller: Caller) -> Approval:
        """Approve a write that waits and carry it out; see `Log.approve`."""
        await self._run(lambda: self.log.approve(approval_id, caller=caller))
        return find_approval(self.log.history.store, approval_id)

    async def reject(self, approval_id: str, *, caller: Caller) -> Approval:
        """Reject a write that waits; see `Log.reject`."""
        await self._run(lambda: self.log.reject(approval_id, caller=caller))
        return find_approval(self.log.history.store, approval_id)

    async def catch_up(self) -> None:
        """Show what other processes appended and look at the live weights.

        `fault` says why that failed, if it did.
        """
        try:
            await self._run(self.log.keep_up)
        except LedgerError as error:
            self._fault = str(error)
            raise
        self._fault = None

    async def push_metrics(self, samples: Sequence[Mapping[str, Any]]) -> Pushed:
        """Take measurements from outside, all or none; see `monitoring.pushing.push`.

        await manager.push_metrics([{"metric": "accuracy", "value": 0.97, "seq": 12}])
        """
        return await asyncio.to_thread(
            push,
            samples,
            self.log.history,
            self.collector.push,
            now_us=time.time_ns() // 1000,
            keep_s=(self.config.metrics_retention_days or 1.0) * _DAY_S,
        )

    # Inference

    def lease(
        self, adapter: str | None = None, measuring: Measuring | None = None
    ) -> AbstractContextManager[Live]:
        """One committed state to infer with: `live.module`, `live.seq`, `live.digest`.

        With `adapter` the module is the base through that adapter, both of the same state;
        ModelNotFound when the state has none of that name.
        The time it is held counts as one inference in the metrics, with what `measuring` says of
        it; one that the block raises on as a failed one, unless that is a LedgerError.
        """
        intake = self.collector.intake
        if adapter is not None:
            # An adapter is of the newest state only, and no trial is about it.
            return MeasuredLease(
                lambda _: self.engine.lease(),
                intake,
                measuring or Measuring(),
                lambda live: through(live, adapter),
            )
        if measuring is None:
            return PlainLease(self.supervision.lease, intake)
        return MeasuredLease(self.supervision.lease, intake, measuring)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._left:
            raise forks.refused(f"the log of {self.log.history.model}")
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)


def _require_parts(engine: object, model: object) -> None:
    """Raise InvalidRequest unless these can be a manager's engine and its model's name."""
    if not isinstance(engine, torch.nn.Module) and not hasattr(engine, "specs"):
        raise InvalidRequest(
            "engine_client must be a torch.nn.Module or an Engine such as TorchEngine(module), got"
            f" {engine!r:.80}",
            param="engine_client",
        )
    if not isinstance(model, str) and not hasattr(model, "model"):
        raise InvalidRequest(
            f"model_config must be a ModelConfig or a model's name, got {model!r:.80}",
            param="model_config",
        )
