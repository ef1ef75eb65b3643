"""The log of one model and the live weights that follow it.

Writes are commands (`writing.commands`); the methods here that write only put one together. A
command is worked out (validate, compute, encode, verify, prepare), appended in one transaction, and
shown by one assignment; `writing.writer` orders the writers. Everything that can fail happens
before the append.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import torch

from weightledger.ledger.adapters.adapter import Adapter, all_of
from weightledger.ledger.audit.chain import Progress
from weightledger.ledger.audit.report import Report
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.blobs import MIN_GRACE_S
from weightledger.ledger.debug.bisect import session
from weightledger.ledger.debug.bisect.bisection import Rules
from weightledger.ledger.debug.blame import Blame, blame
from weightledger.ledger.debug.diff import StateDiff, diff
from weightledger.ledger.debug.each import Each, each
from weightledger.ledger.debug.follow import follow
from weightledger.ledger.debug.measured import Memo
from weightledger.ledger.debug.rank import Which
from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.debug.whatif.adopting import adopt_command
from weightledger.ledger.debug.whatif.asking import what_if
from weightledger.ledger.debug.whatif.state import Mode, WhatIf
from weightledger.ledger.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    LedgerError,
    NotFound,
    OperationDisabled,
    PreconditionFailed,
    Pruned,
)
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import ApprovalRequested, body_of
from weightledger.ledger.history import approvals, versions
from weightledger.ledger.history.approvals import Approval
from weightledger.ledger.history.reader import History
from weightledger.ledger.monitoring.evaluation import Scores
from weightledger.ledger.monitoring.reading import By, put_together
from weightledger.ledger.monitoring.rollups import Rollup, Where
from weightledger.ledger.monitoring.stored import StoredMetrics
from weightledger.ledger.projection.anchoring import Anchoring
from weightledger.ledger.projection.projector import LiveState, Projector
from weightledger.ledger.redaction import TEXTS, redact
from weightledger.ledger.retention import GcReport, collect
from weightledger.ledger.retention import Progress as GcProgress
from weightledger.ledger.sql.wakeups import Wake
from weightledger.ledger.store import Activity, EventFilter
from weightledger.ledger.store.blocks import completes
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest
from weightledger.ledger.writing import commands
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.policy import ANYTHING_GOES, Policy
from weightledger.ledger.writing.recording import record_command
from weightledger.ledger.writing.requests import IncrementalUpdateRequest, metadata_text
from weightledger.ledger.writing.showing import Committed
from weightledger.ledger.writing.stored_commands import restore
from weightledger.ledger.writing.update_commands import batch_command, update_command
from weightledger.ledger.writing.writer import Writer

logger = logging.getLogger(__name__)
Listener = Callable[[Committed], None]

_RECENT_APPROVALS = 1000
# What asking again would not change.
_FOR_GOOD = (
    InvalidRequest,
    NotFound,
    Pruned,
    OperationDisabled,
    PreconditionFailed,
    IdempotencyMismatch,
)


class Log:
    """The log of one model and its live weights. Safe to use from any thread.

    `policy` is what every write meets, whoever asks for it. `first_names` maps the further names of
    tied tensors to the first.
    """

    def __init__(
        self,
        history: History,
        projector: Projector,
        *,
        alpha: float = 1.0,
        policy: Policy = ANYTHING_GOES,
    ) -> None:
        self.history = history
        self.projector = projector
        self._anchoring = Anchoring(history, projector, alpha)
        self._writer = Writer(history, projector, policy, self._afterwards)
        self._listeners: list[Listener] = []
        self._memo = Memo()
        self.first_names = projector.engine.aliases()

    # Writes. Each raises PreconditionFailed, IdempotencyMismatch, Conflict, OperationDisabled or
    # StorageError as well as what it names, and has changed nothing then.

    def execute(self, command: commands.Command) -> Event:
        """Carry out a command, and give its event; it is durable and visible then.

        Changes of weights give an `updated` event, or an `update_rejected` one when the guard
        refuses the candidate or the result would not be finite.
        """
        return self._writer.execute(command)

    def submit(self, command: commands.Command) -> "Future[Event]":
        """Queue a command for `drain`, which appends all that wait in few transactions.

        The future gives what `execute` gives or raises. Where the command's row has something to
        read, `ready` does that first.
        """
        return self._writer.submit(command)

    def ready(self, command: commands.Command) -> commands.Command:
        """Do what takes long and needs no lock; gives the command to queue."""
        return self._writer.ready(command)

    @property
    def waiting(self) -> int:
        """How many writes are queued."""
        return self._writer.waiting

    def drain(self) -> None:
        """Work off all that was queued; each future is done afterwards."""
        self._writer.drain()

    def apply(self, request: IncrementalUpdateRequest) -> Event:
        """Apply an update as one event; see `execute` and `update_commands`."""
        return self.execute(update_command(request, self.specs, self.first_names))

    def apply_batch(
        self,
        requests: Sequence[IncrementalUpdateRequest],
        *,
        caller: Caller = ANYONE,
        metadata: Mapping[str, Any] | None = None,
    ) -> Event:
        """Apply 1 to 4,096 updates, in order, as one event, all or none; see `execute`.

        `caller` and `metadata` belong to the event; a request that has its own is refused.
        """
        return self.execute(batch_command(requests, self.specs, self.first_names, caller, metadata))

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
        and shapes (InvalidRequest, NotFound). What DataParallel, DDP, `torch.compile` or
        AveragedModel put into the names is taken off, and the event says what that was. Values
        are recorded as they are, NaN included.
        """
        if reason is not None:
            caller = replace(caller, reason=reason)
        text = metadata_text(metadata)
        return self.execute(record_command(source, self.specs, self.first_names, caller, text))

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
        return self.execute(commands.CreateVersion(description, caller, performance_metrics))

    def create_initial_version(
        self, description: str = "Initial version", *, caller: Caller = ANYONE
    ) -> Event:
        """Name the state the model was registered with, v0; returns v0 if it is named already.

        Pruned when gc dropped what that state needs before it was named.
        """
        return self.execute(commands.CreateInitialVersion(description, caller))

    def rollback(self, position: str, *, caller: Caller = ANYONE, cause: str = "manual") -> Event:
        """Move the model to an earlier state (or any other), bit for bit, as one event.

        NotFound when the position names nothing, Pruned when gc dropped what its state needs.
        Later updates branch from the state rolled back to; the states left behind stay in the log.
        """
        return self.execute(commands.RollBack(position, caller, cause))

    def retire_versions(self, keep: int, *, min_age_s: float = 0.0) -> list[Event]:
        """Take the oldest names off the list until `keep` are left.

        The active version's name stays, and those that are pinned or younger than `min_age_s`.
        """
        retired = []
        newest = time.time_ns() // 1000 - int(min_age_s * 1_000_000)
        with self._writer.lock:
            listed = self.history.store.listed_versions()
            active = self.live.head.active
            spare = [one.seq for one in listed if not one.pinned and one.number != active]
            for seq in spare[: max(0, len(listed) - keep)]:
                if min_age_s and self.history.require(seq).recorded_at > newest:
                    break  # those after it are younger still
                with contextlib.suppress(NotFound):  # another writer was faster
                    retired.append(self.execute(commands.Retire(seq)))
        return retired

    def snapshot(self) -> None:
        """Write an anchor at the live state, unless there is one; unchanged tensors are shared."""
        with self._writer.lock:
            self._anchoring.snapshot()

    def catch_up(self) -> Event:
        """Show what other processes appended; returns the head."""
        return self._writer.catch_up()

    def keep_up(self) -> Event:
        """What a process does while nobody writes: catch up, and look at every live tensor.

        Raises WeightsChangedOutside, naming them, if something else wrote to some.
        """
        with self._writer.lock:
            head = self.catch_up()
            self.projector.check_live()
            return head

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
            self.history, dry_run=dry_run, grace_s=grace_s, caller=caller, progress=progress
        )
        self.catch_up()
        return report

    def approvals(self, *, limit: int = 100) -> list[Approval]:
        """Writes that wait for a second person, or did, newest first."""
        return approvals.every(self.history.store, limit=limit)

    def approve(self, approval_id: str, *, caller: Caller) -> Event:
        """Approve a write that somebody else asked for, and carry it out; gives its event.

        NotAllowed for the one who asked, Conflict for what is decided. What cannot be carried out
        any more raises as it would have for who asked, and is recorded as lapsed.
        """
        approval = approvals.find(self.history.store, approval_id)
        if approval.state != "approved":  # then somebody was interrupted between the two
            self.execute(commands.Decide(approval_id, True, caller))
        return self._carry_out(approval_id)

    def reject(self, approval_id: str, *, caller: Caller) -> Event:
        """Reject a write that somebody else asked for."""
        return self.execute(commands.Decide(approval_id, False, caller))

    def carry_out_approved(self) -> list[Event]:
        """Carry out what was approved and not carried out yet: a process may have died between.

        What cannot be is logged.
        """
        done = []
        for approval in approvals.every(self.history.store, limit=_RECENT_APPROVALS):
            if approval.state == "approved":
                try:
                    done.append(self._carry_out(approval.id))
                except LedgerError as error:
                    logger.error("%s was approved and is not carried out: %s", approval.id, error)
        return done

    def _carry_out(self, approval_id: str) -> Event:
        approval = approvals.find(self.history.store, approval_id)
        request = body_of(approval.request, ApprovalRequested)
        caller = Caller(
            actor=approval.requested_by,
            reason=approval.reason,
            request_id=approval.request.request_id,
            idempotency_key=approvals.key_of(approval.number),
            expected_seq=request.expected_seq,
        )
        data = self.history.store.payload(approval.request)
        command = restore(request.request, data, self.specs, caller, approval.metadata)
        try:
            return self.execute(commands.CarryOut(command))
        except _FOR_GOOD as error:
            self.execute(commands.Lapse(approval_id, str(error)))
            raise

    def redact(
        self,
        *events: str,
        texts: Sequence[str] = TEXTS,
        caller: Caller = ANYONE,
    ) -> list[Event]:
        """Take actor, reason and metadata (or some of `texts`) away from events named so.

        See `redaction`; gives the events that say so. On PostgreSQL it takes the tables' owner.
        """
        seqs = [self.history.event(name).seq for name in events]
        redacted = redact(self.history, seqs, texts, caller=caller)
        self.catch_up()
        return redacted

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

    def activity(self, **where: Any) -> list[Activity]:
        """How many events there were by day, kind and actor; see `History.activity`."""
        return self.history.activity(EventFilter(**where))

    def versions(self) -> Sequence[versions.ModelVersion]:
        """Listed versions, newest first."""
        return self.history.versions()

    def follow(self, after_seq: int | None = None, *, wake: Wake = "auto") -> Iterator[Event]:
        """Every event from now on (or after a seq), of whichever process; see `debug.follow`."""
        return follow(self.history.store, after_seq, wake=wake)

    def wait(self, after_seq: int, timeout_s: float, *, wake: Wake = "auto") -> int:
        """Wait, at most so long, for an event behind a seq, of whichever process; gives the last
        seq. What is live follows it or not: see `Ledger.follow`."""
        return self.history.store.wait(after_seq, timeout_s, wake)

    # Questions, for when something went wrong

    def diff(self, before: str, after: str = "head", *, ranks: Which = "auto") -> StateDiff:
        """What differs between the states at two positions; see `debug.diff`."""
        return diff(self.history, before, after, ranks=ranks, memo=self._memo)

    def each(self, before: str, after: str = "head", *, columns: int = 60) -> Each:
        """What each update from one state to a later one did, by layer; see `debug.each`."""
        return each(self.history, before, after, columns=columns)

    def what_if(
        self,
        without: Sequence[str],
        *,
        to: str = "head",
        mode: Mode = "mechanical",
        only_after: str | None = None,
    ) -> WhatIf:
        """What the state at a position would be without some events; see `debug.whatif`."""
        return what_if(self.history, without, to=to, mode=mode, only_after=only_after)

    def adopt_what_if(
        self,
        without: Sequence[str],
        *,
        to: str = "head",
        mode: Mode = "mechanical",
        only_after: str | None = None,
        caller: Caller = ANYONE,
    ) -> Event:
        """Make a what-if the model's state, as an update whose reason says what it is."""
        return self.execute(
            adopt_command(
                self.history, without, to=to, mode=mode, only_after=only_after, caller=caller
            )
        )

    def replayed(self, position: str = "head") -> ReplayedState:
        """A state in memory, verified: its tensors, seq, version and digest."""
        return Walker(self.history).to(self.history.resolve(position).node)

    def bisect(
        self,
        good: str,
        bad: str,
        judge: Callable[[ReplayedState], bool | Mapping[str, float] | Scores | None],
        *,
        rules: Rules | None = None,
    ) -> dict[str, Any]:
        """Find the state change between two positions that made the model bad.

        `judge` gets a state (`.weights`, `.seq`, `.version`) and says True for good, False for bad,
        None where it cannot be judged; with `rules.metric` it gives metrics. See `debug.bisect`.
        """
        return session.bisect(self.history, good, bad, judge, rules)

    def metrics(self, by: By = "seq", **where: Any) -> list[Rollup]:
        """What was measured and is written, newest first; see `monitoring.reading` for `by`.

        Conditions are the fields of `ledger.monitoring.rollups.Where`.
        """
        stored = StoredMetrics(self.history.store.metrics)
        return put_together(stored.rollups(Where(**where)), by)

    def blame(
        self,
        parameter: str,
        index: str | None = None,
        *,
        limit: int = 50,
        max_seq: int | None = None,
    ) -> Blame:
        """Who touched a parameter or one element of it, newest first; see `debug.blame`."""
        return blame(self.history, parameter, index, limit=limit, max_seq=max_seq)

    def verify(self, progress: Progress | None = None) -> Report:
        """Recompute every digest from the log; see `ledger.audit.verify`."""
        return verify(self.history, progress)

    def verify_live(self) -> tuple[LiveState, StateDigest]:
        """What the live weights should be, and the digests of the tensors as they are now."""
        with self._writer.lock:
            return self.projector.live, self.projector.hash_live()

    def _afterwards(self, committed: Committed) -> None:
        """What follows a write. The event is durable and visible, so nothing here may fail it."""
        event = committed.event
        try:
            self._anchoring.after(event)
        except LedgerError as error:
            logger.warning("no snapshot after event %d, will try again: %s", event.seq, error)
        except Exception:
            logger.exception("no snapshot after event %d, will try again", event.seq)
        if completes(event.seq):
            try:
                self.history.store.index()
            except LedgerError as error:
                logger.warning("queries read events from %d on anew: %s", event.seq, error)
        for listener in self._listeners:
            try:
                listener(committed)
            except Exception:
                logger.exception("a listener failed on event %d", event.seq)
