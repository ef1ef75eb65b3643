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
from weightledger.ledger.events import NO_WORDS, Annotation, Draft, Event, seal
from weightledger.ledger.history import approvals
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.projector import Projector
from weightledger.ledger.store import Append
from weightledger.ledger.writing.handlers.approvals import answer
from weightledger.ledger.writing.job import Job, Later
from weightledger.ledger.writing.plans import Plan, ProposedEvent, proposed
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
        job.appends, job.changes = [], None
        known = self._known(job)
        if known is not None:
            self.finish(job, known)
            return False
        expected = command.caller.expected_seq
        if expected is not None:
            self._require_expected(expected)
        try:
            while True:
                answered = job.row.handle(command, staged)
                if isinstance(answered, Event):  # nothing changed, so nothing has to be shown
                    job.answer(answered)
                    return False
                event = proposed(answered, staged) if isinstance(answered, Plan) else answered
                append = self._sealed(event, job)
                job.appends.append(append)
                job.changes = event.changes or job.changes  # one of its events changes tensors
                staged.stage(append.event, event.changes)
                if not event.more:
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

    def _sealed(self, proposed: ProposedEvent, job: Job) -> Append:
        """The proposed event in its place after the staged head. Only the last event of a command
        has its key."""
        caller, drafted, last = job.command.caller, proposed.draft, not proposed.more
        words = (caller.actor, caller.reason, job.command.metadata)
        worded = last or proposed.worded
        annotation = Annotation(*words) if worded and any(map(_is_said, words)) else NO_WORDS
        draft = Draft(  # not `replace`, which takes longer than all the rest here
            drafted.body,
            drafted.state_after,
            drafted.target_node,
            drafted.number,
            drafted.active,
            proposed.payload.refs,
            annotation,
            caller.request_id if last else drafted.request_id,
            caller.idempotency_key if last else drafted.idempotency_key,
            job.digest if last else drafted.request_digest,
        )
        event = seal(draft, self._history.model, self._staged.live.head, time.time_ns() // 1000)
        payload = proposed.payload
        return Append(event, annotation, proposed.parameters, payload.inline, payload.blobs)

    def _known(self, job: Job) -> Event | None:
        """The event this idempotency key has led to already."""
        job.digest = job.digest or job.command.digest
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


def _is_said(word: str | None) -> bool:
    return word is not None
