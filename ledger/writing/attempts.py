"""One attempt at a command: answered before, or worked out on the staged state and sealed there.

Nothing is appended here. The writer appends what an attempt came to or, when another writer was
faster, has the command attempted again on the newer state.
"""

import time

from weightledger.ledger import events
from weightledger.ledger.errors import (
    EngineUnavailable,
    IdempotencyMismatch,
    InvalidRequest,
    PreconditionFailed,
)
from weightledger.ledger.events import NO_WORDS, Annotation, Event, seal
from weightledger.ledger.history import approvals
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.projector import Projector
from weightledger.ledger.writing.handlers.approvals import answer
from weightledger.ledger.writing.job import Job, Later
from weightledger.ledger.writing.plan import Plan
from weightledger.ledger.writing.proposed import ProposedEvent
from weightledger.ledger.writing.proposing import proposed
from weightledger.ledger.writing.staged import Staged


class Attempts:
    """Attempts at commands of one log; used by one writer at a time."""

    def __init__(self, history: History, projector: Projector, staged: Staged) -> None:
        self._history = history
        self._projector = projector
        self._staged = staged

    def work_out(self, job: Job) -> bool:
        """Work a command out on the staged state, and stage its events.

        False when there is nothing to append: it was answered before.
        """
        command, staged = job.command, self._staged
        job.started = job.started or time.perf_counter()
        job.appends, job.change = [], None
        known = self._known(job)
        if known is not None:
            self.finish(job, known)
            return False
        expected = command.caller.expected_seq
        if expected is not None:
            self._require_expected(expected)
        try:
            while True:
                answered = job.row.answer(command, staged)
                if isinstance(answered, Event):  # nothing changed, so nothing has to be shown
                    job.answer(answered)
                    return False
                proposal = proposed(answered, staged) if isinstance(answered, Plan) else answered
                event, annotation = self._sealed(proposal, job)
                job.appends.append((event, annotation, proposal.attached))
                job.change = proposal.change or job.change  # one of its events changes tensors
                staged.stage(event, proposal.change)
                if not proposal.more:
                    return True
        except BaseException:
            if job.appends:  # it was alone, so nothing else is staged
                staged.clear()
            raise

    def finish(self, job: Job, event: Event) -> None:
        """Give the event, or EngineUnavailable while a remote engine is not known to show it."""
        remote = self._projector.remote
        if event.kind == events.APPROVAL_REQUESTED:
            told = answer(approvals.of(self._history.store, event))
            if isinstance(told, Event):
                job.answer(told)
            else:
                job.fail(told)
        elif remote is not None and remote.fault and event.kind in events.STATE_CHANGING:
            job.fail(
                EngineUnavailable(
                    f"{event.name} is recorded and will be shown as soon as possible, but the "
                    f"engine is fenced: {remote.fault}"
                )
            )
        else:
            job.answer(event)

    def _sealed(self, proposed: ProposedEvent, job: Job) -> tuple[Event, Annotation]:
        """The proposed event in its place after the staged head, and the caller's words. Only the
        last event of a command has its key."""
        command, last = job.command, not proposed.more
        caller, metadata = command.caller, command.metadata
        said = caller.actor is not None or caller.reason is not None or metadata is not None
        annotation = NO_WORDS
        if said and (last or proposed.worded):
            annotation = job.words or Annotation(caller.actor, caller.reason, metadata)
        event = seal(
            proposed.draft,
            self._history.model,
            self._staged.live.head,
            time.time_ns() // 1000,
            annotation=annotation,
            request_id=caller.request_id if last else None,
            idempotency_key=caller.idempotency_key if last else None,
            request_digest=job.digest if last else None,
        )
        return event, annotation

    def _known(self, job: Job) -> Event | None:
        """The event that another process made of this job, or the one that its idempotency key has
        led to already."""
        job.digest = job.digest or job.command.digest
        if job.left is not None:
            event = job.left.event()
            if event is not None:
                shown = self._shown(event)
                job.left = None
                return shown
        key = job.command.caller.idempotency_key
        if key is None:
            return None
        if job.digest is None:
            raise InvalidRequest("an idempotency key needs the digest of the request it is for")
        event = self._history.store.by_key(key)
        if event is None:
            return None
        if event.request_digest != job.digest:
            raise IdempotencyMismatch(
                f"idempotency key {key!r} was used for another request, {event.name}"
            )
        return self._shown(event)

    def _shown(self, event: Event) -> Event:
        """An event of the log, once it is visible; Later when that has to wait."""
        if event.seq > self._projector.live.head.seq:
            if self._staged.pending:
                raise Later
            self._projector.catch_up(self._history)
        return event

    def _require_expected(self, expected: int) -> None:
        if self._staged.live.head.state_seq == expected:
            return
        head = self._projector.catch_up(self._history)
        if head.state_seq != expected:
            raise PreconditionFailed(
                f"expected seq {expected}, but the last state change is seq {head.state_seq}",
                head_seq=head.state_seq,
            )
