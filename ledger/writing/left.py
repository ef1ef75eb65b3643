"""What became of a command that was left to another process: what that promised, and the log."""

from weightledger.ledger.errors import LedgerError, OutcomeUnknown
from weightledger.ledger.events import Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.sql.boxes import Promised, Ticket
from weightledger.ledger.writing.job import Job


class LeftToOthers:
    """A job of ours whose command was left to others; see `job.Left`."""

    def __init__(self, history: History, job: Job, ticket: Ticket) -> None:
        self.job = job
        self.ticket = ticket
        self.has_turn = False
        """Whether this writer has its turn since it took the command back: then nobody else is at
        it any more, and what is not promised never is."""
        self._history = history

    def event(self) -> Event | None:
        """See `job.Left.event`."""
        promised = self._promised()
        if promised is None:
            return None
        event = self._history.store.event(promised.seq)
        return event if event is not None and event.hash == promised.hash else None

    def is_refuted(self) -> bool:
        """See `job.Left.is_refuted`."""
        try:
            promised = self._promised()
            if promised is None:
                return self.has_turn
            event = self._history.store.event(promised.seq)
            return event is not None and event.hash != promised.hash
        except LedgerError:
            return False

    def _promised(self) -> Promised | None:
        try:
            return self.ticket.promised()
        except OSError as error:
            raise OutcomeUnknown(
                f"an update of {self._history.model} was left to another process, and what became"
                f" of it cannot be read: {error}"
            ) from error
