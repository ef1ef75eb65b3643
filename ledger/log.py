"""The log of one model and the live weights that follow it.

What can be asked of it is in `questions`, a file for each subsystem that answers. Writes are
commands (`writing.commands`); the methods here that write only put one together. A command is
worked out (validate, compute, encode, verify, prepare), appended in one transaction, and shown by
one assignment; `writing.writer` orders the writers. Everything that can fail happens before the
append.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from weightledger.ledger.adapters.adapter import Adapter, all_of
from weightledger.ledger.blobs import MIN_GRACE_S
from weightledger.ledger.debug.filling import fill
from weightledger.ledger.debug.walking import ReplayedState
from weightledger.ledger.debug.whatif.adopting import adopt_command
from weightledger.ledger.debug.whatif.state import Mode
from weightledger.ledger.engines import Engine
from weightledger.ledger.errors import (
    InvalidRequest,
    LedgerError,
    NotFound,
)
from weightledger.ledger.events import Event
from weightledger.ledger.forks import OfItsProcess
from weightledger.ledger.history import holds
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.redactions import MOST, TEXTS, redactions_of, seqs_of_actor
from weightledger.ledger.projection.anchoring import Anchoring
from weightledger.ledger.projection.following import News
from weightledger.ledger.projection.projector import LiveState, Projector
from weightledger.ledger.questions import Questions
from weightledger.ledger.retention import GcReport, collect
from weightledger.ledger.retention import Progress as GcProgress
from weightledger.ledger.store.blocks import completes
from weightledger.ledger.store.payloads import checked, from_blobs
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest
from weightledger.ledger.writing import approval_commands, commands, rollout_commands
from weightledger.ledger.writing.approved import Approved
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.job import Job
from weightledger.ledger.writing.policy import ANYTHING_GOES, Policy
from weightledger.ledger.writing.recording import record_command
from weightledger.ledger.writing.requests import IncrementalUpdateRequest, metadata_text
from weightledger.ledger.writing.showing import Committed
from weightledger.ledger.writing.update_commands import batch_command, update_command
from weightledger.ledger.writing.writer import Writer

logger = logging.getLogger(__name__)
Listener = Callable[[Committed], None]


class Log(Questions, OfItsProcess):
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
        super().__init__(history)
        self.projector = projector
        self._anchoring = Anchoring(history, projector, alpha)
        self.policy = policy
        self._writer = Writer(history, projector, policy, self._afterwards)
        self._approved = Approved(history, self._writer.execute, self.specs)
        self._listeners: list[Listener] = []
        self.first_names = projector.engine.aliases()

    # Writes. Each raises PreconditionFailed, IdempotencyMismatch, OperationDisabled or
    # StorageError as well as what it names, and has changed nothing then.

    def execute(self, command: commands.Command) -> Event:
        """Carry out a command, and give its event; it is durable and visible then.

        Changes of weights give an `updated` event, or an `update_rejected` one when the guard
        refuses the candidate or the result would not be finite.
        """
        return self._writer.execute(command)

    def submit(self, command: commands.Command, told: Callable[[Job], None] | None = None) -> Job:
        """Queue a command for `drain`, which appends all that wait in few transactions.

        The job's `result()` gives what `execute` gives or raises, once it is `done`; then `told` is
        called with it, on the thread that drains. Where the command's row has something to read,
        `ready` does that first.
        """
        return self._writer.submit(command, told)

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

    def load_adapter(
        self, name: str, path: str | Path, *, inplace: bool = False, caller: Caller = ANYONE
    ) -> Event:
        """Serve the LoRA adapter in a folder beside the base; `inplace` replaces one of that name.

        The folder is as PEFT saves it, in safetensors form; what is read goes into the ledger.
        InvalidRequest for one that does not fit, and for an engine that shows no adapters.
        """
        return self.execute(commands.LoadAdapter(name, path, inplace, caller))

    def unload_adapter(self, name: str, *, caller: Caller = ANYONE) -> Event:
        """Stop serving an adapter; NotFound when it is not loaded."""
        return self.execute(commands.UnloadAdapter(name, caller))

    def merge_adapter(self, name: str, *, unload: bool = True, caller: Caller = ANYONE) -> Event:
        """Add an adapter to the base weights, and with `unload` take it off, as one update."""
        return self.execute(commands.MergeAdapter(name, unload, caller))

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

    def retire_versions(self, keep: int, *, min_age_s: float = 0.0) -> list[Event]:
        """Take the oldest names off the list until `keep` are left.

        The active version's name stays, and those that are pinned, under legal hold or younger than
        `min_age_s`.
        """
        retired = []
        newest = time.time_ns() // 1000 - int(min_age_s * 1_000_000)
        with self._writer.lock:
            listed = self.history.store.listed_versions()
            active = self.live.head.active
            kept = {active, *holds.held_states(self.history.store)}
            spare = [one.seq for one in listed if not one.pinned and one.number not in kept]
            for seq in spare[: max(0, len(listed) - keep)]:
                named = self.history.require(seq)
                if min_age_s and named.recorded_at > newest:
                    break  # those after it are younger still
                # Another writer retired it, pinned it or put it under hold meanwhile.
                with contextlib.suppress(NotFound, InvalidRequest):
                    retired.append(self.execute(commands.Retire(named.name, cause="max_versions")))
        return retired

    def retire_version(self, version_id: str, *, caller: Caller = ANYONE) -> Event:
        """Take a version's name off the list, so that gc may drop what only it needs.

        InvalidRequest for one that is active, pinned or under legal hold, NotFound for one that is
        not listed.
        """
        return self.execute(commands.Retire(version_id, caller))

    def hold(self, version_id: str, *, caller: Caller) -> Event:
        """Put a version under legal hold: it is not retired, and gc keeps its state.

        `caller` says why. NotFound for no such version, Pruned when its state is gone.
        """
        return self.execute(commands.PlaceHold(version_id, caller))

    def release(self, hold_id: str, *, caller: Caller) -> Event:
        """End a legal hold; `caller` says why. A version may be under others still."""
        return self.execute(commands.Release(hold_id, caller))

    def start_rollout(self, to: str, percent: int, *, caller: Caller = ANYONE) -> Event:
        """Have `percent` of the replicas show the state at a position; see `StartRollout`.

        RolloutRuns while another one does.
        """
        return self.execute(rollout_commands.StartRollout(to, percent, caller))

    def advance_rollout(
        self, percent: int, rollout: str | None = None, *, caller: Caller = ANYONE
    ) -> Event:
        """Have more of the replicas show it, or fewer; NotFound unless that rollout runs."""
        return self.execute(rollout_commands.AdvanceRollout(percent, rollout, caller))

    def end_rollout(
        self, status: str, rollout: str | None = None, *, caller: Caller = ANYONE
    ) -> Event:
        """End a rollout, "finished" or "aborted": every replica follows the head again.

        The head is then what was rolled out, or what the others were held at; see `EndRollout`.
        NotFound unless that rollout runs.
        """
        return self.execute(rollout_commands.EndRollout(status, rollout, caller))

    def snapshot(self) -> None:
        """Write an anchor at the live state, unless there is one; unchanged tensors are shared."""
        with self._writer.lock:
            self._anchoring.snapshot()

    def catch_up(self, to: int | None = None, news: News | None = None) -> Event:
        """Show what other processes appended; gives the head, or the event `to` that was asked for.

        See `Projector.catch_up`.
        """
        return self._writer.catch_up(to, news)

    def rehearse(self, event: Event, payload: bytes | None, proposal: str) -> bytes:
        """Build the state that a proposed event would lead to, and show nothing of it.

        `payload` is the inline one; see `Projector.rehearse`.
        """
        data = from_blobs(event, self.history.blobs) if payload is None else checked(event, payload)
        with self._writer.lock:
            return self.projector.rehearse(self.history, event, data, proposal)

    def forget(self) -> None:
        """Let go of what was rehearsed and did not become an event."""
        with self._writer.lock:
            self.projector.forget()

    def look_after(self) -> None:
        """Look at every live tensor, or have a remote engine show again what it was brought to.

        Raises WeightsChangedOutside, naming them, if something else wrote to some;
        EngineUnavailable.
        """
        with self._writer.lock:
            if self.projector.remote is not None:
                self.projector.remote.converge()
            self.projector.check_live()

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
        if not dry_run:
            self.policy.require(None)
        report = collect(
            self.history, dry_run=dry_run, grace_s=grace_s, caller=caller, progress=progress
        )
        self.catch_up()
        return report

    def approve(self, approval_id: str, *, caller: Caller) -> Event:
        """Approve a write that somebody else asked for, and carry it out; gives its event.

        NotAllowed for the one who asked, Conflict for what is decided. What cannot be carried out
        any more raises as it would have for who asked, and is recorded as lapsed.
        """
        return self._approved.approve(approval_id, caller)

    def reject(self, approval_id: str, *, caller: Caller) -> Event:
        """Reject a write that somebody else asked for."""
        return self.execute(approval_commands.Decide(approval_id, False, caller))

    def carry_out_approved(self) -> list[Event]:
        """Carry out what was approved and not carried out yet: a process may have died between.

        What cannot be is logged.
        """
        return self._approved.carry_out_all()

    def redact(
        self,
        *events: str,
        of: str | None = None,
        texts: Sequence[str] = TEXTS,
        caller: Caller = ANYONE,
    ) -> list[Event]:
        """Take actor, reason and metadata (or some of `texts`) away from events named so.

        `of` means every event of an actor, beside those. Gives the events that say so; see
        `redaction`.
        """
        store = self.history.store
        seqs = {self.history.event(name).seq for name in events}
        if of is not None:
            seqs.update(seqs_of_actor(store, of))
        pages = [tuple(sorted(seqs))]
        if len(seqs) > MOST:
            pages = [one.events for one in redactions_of(store, pages[0], texts)]
        return [self.execute(commands.Redact(page, tuple(texts), caller)) for page in pages]

    def subscribe(
        self, listener: Listener, followed: Callable[[Event], None] | None = None
    ) -> None:
        """Call `listener` after each event of this process is durable and visible.

        `followed` is called when events of other processes are visible here, with the last of them.
        Both are called on the thread that writes or catches up.
        """
        self._listeners.append(listener)
        if followed is not None:
            self.projector.subscribe(followed)

    # What is live. Questions about the log are in `questions`.

    @property
    def live(self) -> LiveState:
        """What the live weights show right now."""
        return self.projector.live

    @property
    def engine(self) -> Engine:
        """What holds the live weights."""
        return self.projector.engine

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The adapters of the live state, by name."""
        return all_of(self.live.auxiliary)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The model's tensors by bare name."""
        return self.projector.specs

    def replay_into(self, module: torch.nn.Module, position: str = "head") -> ReplayedState:
        """Give a module of this process the weights at a position, bit for bit; gives the state.

        For trying out what was, beside what is served; what is live stays as it is. Adapters and
        rules' states are in the state's `tensors`. InvalidRequest for the live module itself;
        NotFound or InvalidRequest, and nothing is written, for one with other tensors.
        """
        state = self.replayed(position)
        engine = self.projector.engine
        fill(module, state, self.specs, self.first_names, map(engine.tensor, engine.specs()))
        return state

    def verify_live(self) -> tuple[LiveState, StateDigest]:
        """What the live weights should be, and the digests of the tensors as they are now."""
        with self._writer.lock:
            return self.projector.live, self.projector.hash_live()

    def _afterwards(self, committed: Committed) -> None:
        """What follows a write. The event is durable and visible, so nothing here may fail it."""
        event = committed.event
        try:
            self._anchoring.after(event, ours=committed.append_s is not None)
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
