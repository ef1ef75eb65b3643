"""The log of one model and the live weights that follow it: the write path.

A write is proposed (validate, compute, encode, verify, prepare), appended in one transaction, and
shown by one assignment; `writing.writer` orders the writers. Everything that can fail happens
before the append.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from weightledger.ledger import adapters, events
from weightledger.ledger.adapters import LoRAConfig
from weightledger.ledger.adapters.adapter import Adapter, all_of
from weightledger.ledger.audit.chain import Progress
from weightledger.ledger.audit.verify import Report, verify
from weightledger.ledger.blobs import MIN_GRACE_S
from weightledger.ledger.errors import InvalidRequest, LedgerError, NotFound
from weightledger.ledger.events import Event
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.history import versions
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.anchoring import Anchoring
from weightledger.ledger.projection.projector import LiveState, Projector
from weightledger.ledger.retention import GcReport, collect
from weightledger.ledger.retention import Progress as GcProgress
from weightledger.ledger.store import EventFilter
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest
from weightledger.ledger.writing import adapter_plans, plans
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.plans import Guard, Planner
from weightledger.ledger.writing.recording import require_same_tensors
from weightledger.ledger.writing.requests import IncrementalUpdateRequest, Update, validate
from weightledger.ledger.writing.staged import Staged
from weightledger.ledger.writing.writer import Committed, Request, Writer

logger = logging.getLogger(__name__)

MAX_DESCRIPTION = 500
MAX_BATCH = 4096
"""Most updates in one event."""

Listener = Callable[[Committed], None]


class Log:
    """The log of one model and its live weights. Safe to use from any thread."""

    def __init__(self, history: History, projector: Projector, *, alpha: float = 1.0) -> None:
        self.history = history
        self.projector = projector
        self._anchoring = Anchoring(history, projector, alpha)
        self._writer = Writer(history, projector, self._afterwards)
        self._listeners: list[Listener] = []
        self._first_names = projector.engine.aliases()

    # Writes. Each raises PreconditionFailed, IdempotencyMismatch, Conflict or StorageError as
    # well as what it names; after an error neither the log nor the model has changed.

    def apply(self, request: IncrementalUpdateRequest, guard: Guard | None = None) -> Event:
        """Apply an update as one event.

        Returns the `updated` event, or the `update_rejected` event when the guard refuses the
        candidate or the result would not be finite. Raises InvalidRequest or NotFound for a
        request that does not fit the model.
        """
        return self._writer.write(self._update(request, guard))

    def submit(
        self, request: IncrementalUpdateRequest, guard: Guard | None = None
    ) -> "Future[Event]":
        """Queue an update for `drain`, which appends all that wait in few transactions.

        The future gives what `apply` gives or raises.
        """
        return self._writer.submit(lambda: self._update(request, guard))

    def drain(self) -> None:
        """Work off all queued updates; each future is done afterwards."""
        self._writer.drain()

    def apply_batch(
        self,
        requests: Sequence[IncrementalUpdateRequest],
        guard: Guard | None = None,
        *,
        caller: Caller = ANYONE,
        metadata: Mapping[str, Any] | None = None,
    ) -> Event:
        """Apply 1 to MAX_BATCH updates, in order, as one atomic event.

        `caller` and `metadata` belong to the event; a request that has its own is refused. Raises
        and returns as `apply` does; one update that does not fit refuses all of them.
        """
        if not 1 <= len(requests) <= MAX_BATCH:
            raise InvalidRequest(f"a batch has 1 to {MAX_BATCH} updates, got {len(requests)}")
        for number, request in enumerate(requests):
            _require_bare(number, request)
        updates = [self._validated(request) for request in requests]
        text = _metadata(metadata)
        facts = {"operation": "batch", "updates": [update.facts for update in updates]}
        return self._writer.write(
            Request(
                caller,
                _digest_of("batch", {"updates": facts["updates"], "metadata": text}),
                lambda staged: plans.planned(
                    self.history, staged, plans.updates(updates, facts), guard
                ),
                text,
                alone=plans.runs_alone(guard),
            )
        )

    def write(
        self,
        planner: Planner,
        guard: Guard | None = None,
        *,
        caller: Caller = ANYONE,
        request_digest: bytes | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Event:
        """Append what `planner` works out on the newest state, as one atomic event.

        The planner may change weights and the tensors beside them together; it is asked again
        when another writer was faster. `request_digest` identifies the request where the caller
        has an idempotency key.
        """
        if caller.idempotency_key is not None and request_digest is None:
            raise InvalidRequest("an idempotency key needs the digest of the request it is for")
        return self._writer.write(
            Request(
                caller,
                request_digest,
                lambda staged: plans.planned(self.history, staged, planner, guard),
                _metadata(metadata),
            )
        )

    def record(
        self,
        source: torch.nn.Module | Mapping[str, torch.Tensor],
        reason: str | None = None,
        *,
        caller: Caller = ANYONE,
        metadata: Mapping[str, Any] | None = None,
    ) -> Event:
        """Record what has become of the model elsewhere, in one atomic event.

        `source` is compared with the head tensor by tensor; it must have the same names, dtypes
        and shapes (InvalidRequest, NotFound). Values are recorded as they are, NaN included.
        """
        tensors = source.state_dict() if isinstance(source, torch.nn.Module) else source
        require_same_tensors(tensors, self.specs, self._first_names)
        if reason is not None:
            caller = replace(caller, reason=reason)
        digest = None
        if caller.idempotency_key is not None:  # hashing the whole model is for retries only
            digests = {name: content_digest(lanes(tensors[name])).hex() for name in self.specs}
            fields = {"tensors": digests, "metadata": _metadata(metadata)}
            digest = _digest_of("record", fields)
        return self.write(
            plans.recording(tensors), caller=caller, request_digest=digest, metadata=metadata
        )

    def load_adapter(
        self,
        name: str,
        path: str | Path,
        *,
        inplace: bool = False,
        limits: LoRAConfig | None = None,
        caller: Caller = ANYONE,
    ) -> Event:
        """Serve the LoRA adapter in a folder under a name, beside the base, as one event.

        The folder is as PEFT saves it, in safetensors form. With `inplace` it takes the place of
        an adapter of that name. Raises NotFound when there is no such folder, and InvalidRequest
        for a name that is taken or not allowed, an adapter that does not fit the model or exceeds
        `limits`, and an engine that shows no adapters.
        """
        adapters.check_name(name, self.history.model)
        planner = adapter_plans.loading(
            self.projector.engine, name, path, inplace=inplace, limits=limits
        )
        asked = {"adapter": name, "path": str(path), "inplace": inplace}
        return self.write(planner, caller=caller, request_digest=_digest_of("load_adapter", asked))

    def unload_adapter(self, name: str, *, caller: Caller = ANYONE) -> Event:
        """Stop serving an adapter; NotFound when it is not loaded."""
        digest = _digest_of("unload_adapter", {"adapter": name})
        return self.write(adapter_plans.unloading(name), caller=caller, request_digest=digest)

    def merge_adapter(
        self,
        name: str,
        guard: Guard | None = None,
        *,
        unload: bool = True,
        caller: Caller = ANYONE,
    ) -> Event:
        """Add an adapter to the base weights as one event, and with `unload` take it off.

        Raises NotFound when it is not loaded, InvalidRequest when it changes a tied weight; else
        returns as `apply` does.
        """
        planner = adapter_plans.merging(self.projector.engine, name, unload=unload)
        digest = _digest_of("merge_adapter", {"adapter": name, "unload": unload})
        return self.write(planner, guard, caller=caller, request_digest=digest)

    def create_version(
        self,
        description: str,
        *,
        caller: Caller = ANYONE,
        performance_metrics: Mapping[str, float] | None = None,
    ) -> Event:
        """Name the current state. Version 0 is always the initial state: it is named first.

        Raises InvalidRequest unless the description has 1 to 500 characters.
        """
        check_description(description)
        facts = {"description": description, "performance_metrics": dict(performance_metrics or {})}
        with self._writer.lock:
            head = self.catch_up()
            if head.counts.versions == 0 and head.node != 0:
                self.create_initial_version()
            return self._writer.write(
                Request(
                    caller,
                    _digest_of("create_version", {"description": description}),
                    lambda staged: plans.version(staged, staged.live.head, facts),
                )
            )

    def create_initial_version(
        self, description: str = "Initial version", *, caller: Caller = ANYONE
    ) -> Event:
        """Name the state the model was registered with, v0; returns v0 if it is named already."""
        check_description(description)
        facts = {"description": description, "performance_metrics": {}}
        with self._writer.lock:
            self.catch_up()
            named = self.history.store.by_number(events.VERSIONS, 0)
            if named is not None:
                return named
            first = self.history.require(0)
            return self._writer.write(
                Request(
                    caller,
                    _digest_of("create_initial_version", {"description": description}),
                    lambda staged: plans.version(staged, first, facts),
                )
            )

    def rollback(self, position: str, *, caller: Caller = ANYONE, cause: str = "manual") -> Event:
        """Move the model to an earlier state (or any other), bit for bit, as one event.

        NotFound when the position names nothing, Pruned when gc dropped what its state needs.
        Later updates branch from the state rolled back to; the states left behind stay in the log.
        """

        def propose(staged: Staged) -> plans.ProposedEvent:
            target = self.history.resolve(position)
            return plans.rollback(self.history, staged, target, cause)

        digest = _digest_of("rollback", {"to": position})
        return self._writer.write(Request(caller, digest, propose))

    def retire_versions(self, keep: int) -> list[Event]:
        """Take the oldest names off the list until `keep` are left.

        The active version's name stays, and those that are pinned.
        """
        retired = []
        with self._writer.lock:
            listed = self.history.store.listed_versions()
            active = self.projector.live.head.active
            spare = [one.seq for one in listed if not one.pinned and one.number != active]
            for seq in spare[: max(0, len(listed) - keep)]:
                with contextlib.suppress(NotFound):  # another writer was faster
                    retired.append(self._retire(self.history.require(seq)))
        return retired

    def pin(self, version_id: str, *, caller: Caller = ANYONE) -> Event:
        """Keep a version's name on the list, so that its state stays; NotFound unless listed."""
        return self._pin(version_id, events.VERSION_PINNED, caller)

    def unpin(self, version_id: str, *, caller: Caller = ANYONE) -> Event:
        """Let a version be retired again; NotFound unless it is listed."""
        return self._pin(version_id, events.VERSION_UNPINNED, caller)

    def snapshot(self) -> None:
        """Write an anchor at the live state, unless there is one; unchanged tensors are shared."""
        with self._writer.lock:
            self._anchoring.snapshot()

    def catch_up(self) -> Event:
        """Show what other processes appended; returns the head."""
        return self._writer.catch_up()

    def follow(self) -> Event:
        """What a process does while nobody writes: catch up, and look at every live tensor.

        Raises WeightsChangedOutside, naming them, if something else wrote to some.
        """
        with self._writer.lock:
            head = self.catch_up()
            self.projector.check_live()
            return head

    def verify(self, progress: Progress | None = None) -> Report:
        """Recompute every digest from the log; see `ledger.audit.verify`."""
        return verify(self.history, progress)

    def verify_live(self) -> tuple[LiveState, StateDigest]:
        """What the live weights should be, and the digests of the tensors as they are now."""
        with self._writer.lock:
            return self.projector.live, self.projector.hash_live()

    def gc(
        self,
        *,
        dry_run: bool = True,
        grace_s: float = MIN_GRACE_S,
        caller: Caller = ANYONE,
        progress: GcProgress | None = None,
    ) -> GcReport:
        """Drop what no retained state needs; see `retention`. With `dry_run` only say what."""
        report = collect(
            self.history,
            dry_run=dry_run,
            grace_s=grace_s,
            caller=caller,
            progress=progress,
        )
        self.catch_up()
        return report

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` after each event of this process is durable and visible."""
        self._listeners.append(listener)

    # Reads

    @property
    def live(self) -> LiveState:
        """What the live weights show right now."""
        return self.projector.live

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The adapters of the live state, by name."""
        return all_of(self.live.auxiliary)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The model's tensors by bare name."""
        return self.projector.specs

    def state(self, position: str = "head") -> dict[str, torch.Tensor]:
        """Every tensor at a position, by bare name; see `history.positions` for the forms."""
        return self.history.state(position)

    def events(self, *, limit: int | None = None, **where: Any) -> list[Event]:
        """Events, newest first; filters are the fields of `ledger.store.EventFilter`."""
        return self.history.events(EventFilter(**where), limit=limit)

    def versions(self) -> Sequence[versions.ModelVersion]:
        """Listed versions, newest first."""
        return self.history.versions()

    # One write

    def _pin(self, version_id: str, kind: str, caller: Caller) -> Event:
        def propose(staged: Staged) -> plans.ProposedEvent:
            return plans.pin(self.history, staged, version_id, kind)

        digest = _digest_of(kind, {"version_id": version_id})
        return self._writer.write(Request(caller, digest, propose))

    def _update(self, request: IncrementalUpdateRequest, guard: Guard | None) -> Request:
        update = self._validated(request)
        caller = Caller(
            request.actor,
            request.reason,
            request.request_id,
            request.idempotency_key,
            request.expected_seq,
        )
        planner = plans.updates([update], update.facts)
        return Request(
            caller,
            update.digest,
            lambda staged: plans.planned(self.history, staged, planner, guard),
            update.metadata,
            alone=plans.runs_alone(guard),
        )

    def answer_to(self, event: Event) -> Event | None:
        """The rollback that answered an event which could not be shown, if one did."""
        after = self.history.store.event(event.seq + 1)
        if after is None or after.kind != events.ROLLED_BACK:
            return None
        return after if after.body["cause"] == plans.PUBLISH_FAILED else None

    def _validated(self, request: IncrementalUpdateRequest) -> Update:
        first = self._first_names.get(request.parameter_name)
        if first is not None:
            request = replace(request, parameter_name=first)
        return validate(request, self.projector.specs)

    def _afterwards(self, written: Committed) -> None:
        """What follows a write. The event is durable and visible, so nothing here may fail it."""
        event = written.event
        try:
            self._anchoring.after(event)
        except LedgerError as error:
            logger.warning("no snapshot after event %d, will try again: %s", event.seq, error)
        for listener in self._listeners:
            try:
                listener(written)
            except Exception:
                logger.exception("a listener failed on event %d", event.seq)

    def _retire(self, version_created: Event) -> Event:
        return self._writer.write(
            Request(
                ANYONE, None, lambda staged: plans.retirement(self.history, staged, version_created)
            )
        )


def check_description(description: str) -> None:
    """Raise InvalidRequest unless it is a string of 1 to 500 characters."""
    if not isinstance(description, str) or not 1 <= len(description) <= MAX_DESCRIPTION:
        got = len(description) if isinstance(description, str) else type(description).__name__
        raise InvalidRequest(
            f"description must have 1 to {MAX_DESCRIPTION} characters, got {got}",
            param="description",
        )


def _require_bare(number: int, request: IncrementalUpdateRequest) -> None:
    for name in ("idempotency_key", "expected_seq", "actor", "reason", "request_id", "metadata"):
        if getattr(request, name) is not None:
            raise InvalidRequest(
                f"update {number} of the batch has its own {name}; the batch is one event: give "
                "it there",
                param=name,
            )


def _metadata(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else canonical(dict(value), param="metadata").decode()


def _digest_of(operation: str, fields: Mapping[str, Any]) -> bytes:
    """The digest of a canonical request, 32 bytes."""
    return content_digest(canonical({"operation": operation, **fields}))
