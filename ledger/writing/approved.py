"""Writes that waited for a second person, carried out once they were approved.

Approving is an event of its own, so a process may die between the two: who starts carries out what
was approved and has come to nothing yet.
"""

import logging
from collections.abc import Callable, Mapping

from weightledger.ledger.errors import (
    CorruptLedger,
    IdempotencyMismatch,
    InvalidRequest,
    LedgerError,
    NotFound,
    OperationDisabled,
    PreconditionFailed,
    Pruned,
    RolloutRuns,
)
from weightledger.ledger.events import APPROVAL_REQUESTED, Event
from weightledger.ledger.events.bodies import ApprovalRequested, body_of
from weightledger.ledger.history import approvals
from weightledger.ledger.history.intact import newest, skipped
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing import approval_commands
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.stored_commands import restore

logger = logging.getLogger(__name__)

_RECENT = 1000
_NOT_CARRIED_OUT = "the request for approval that it belongs to is not carried out"
# What asking again would not change.
_FOR_GOOD = (
    InvalidRequest,
    NotFound,
    Pruned,
    OperationDisabled,
    PreconditionFailed,
    IdempotencyMismatch,
    RolloutRuns,
)


class Approved:
    """The writes of one log that were approved; `execute` carries out a command."""

    def __init__(
        self,
        history: History,
        execute: Callable[[Command], Event],
        specs: Mapping[str, TensorSpec],
    ) -> None:
        self._history = history
        self._execute = execute
        self._specs = specs

    def approve(self, approval_id: str, caller: Caller) -> Event:
        """See `Log.approve`."""
        approval = approvals.find(self._history.store, approval_id)
        if approval.state != "approved":  # then somebody was interrupted between the two
            self._execute(approval_commands.Decide(approval_id, True, caller))
        return self._carry_out(approval_id)

    def carry_out_all(self) -> list[Event]:
        """Carry out what was approved and not carried out yet; what cannot be is logged.

        Where the record of a request or of what became of it is damaged, it is not carried out.
        """
        done = []
        for request in newest(self._history, [APPROVAL_REQUESTED], _RECENT, _NOT_CARRIED_OUT):
            if not isinstance(request, Event):
                continue
            try:
                approval = approvals.of(self._history.store, request)
                waits = approval.state == "approved"
            except CorruptLedger as error:
                skipped(error, _NOT_CARRIED_OUT)
                continue
            if waits:
                try:
                    done.append(self._carry_out(approval.id))
                except LedgerError as error:
                    logger.error("%s was approved and is not carried out: %s", approval.id, error)
        return done

    def _carry_out(self, approval_id: str) -> Event:
        approval = approvals.find(self._history.store, approval_id)
        request = body_of(approval.request, ApprovalRequested)
        caller = Caller(
            actor=approval.requested_by,
            reason=approval.reason,
            request_id=approval.request.request_id,
            idempotency_key=approvals.key_of(approval.number),
            expected_seq=request.expected_seq,
        )
        data = self._history.store.payload(approval.request)
        command = restore(request.request, data, self._specs, caller, approval.metadata)
        try:
            return self._execute(approval_commands.CarryOut(command))
        except _FOR_GOOD as error:
            self._execute(approval_commands.Lapse(approval_id, str(error)))
            raise
