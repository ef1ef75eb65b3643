"""One command on its way through the writer, and what becomes of it."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from weightledger.ledger.errors import OutcomeUnknown
from weightledger.ledger.events import Annotation, Event
from weightledger.ledger.projection.change import Change
from weightledger.ledger.store.attached import Append
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.handlers import Row


class Left(Protocol):
    """A command that was left to another process."""

    def event(self) -> Event | None:
        """The event that the other made of it, once that is in the log. Asked for after the state
        was read that this process would work the command out on, which is without it if this is
        None. Raises OutcomeUnknown where nobody can tell, and whatever reading the log raises."""

    def is_refuted(self) -> bool:
        """Whether the other has not, and will not, commit anything of it, as far as is known."""


class Later(Exception):
    """This command has to wait until those before it are appended."""


class Job(msgspec.Struct, eq=False):
    """One command in the queue; `appends` and `change` are what its last attempt came to.

    Of one whose command was left to another process `left` says what became of it, and `words` are
    what is to stand beside its event, whoever makes it.

    Its outcome is an event or an error. Who holds the writer's lock sets it, and `told` calls who
    asked for it without the lock, on that thread; it must not fail.
    """

    command: Command
    row: Row
    told: "Callable[[Job], None] | None" = None
    digest: bytes | None = None
    started: float = 0.0
    attempts: int = 0
    appends: list[Append] = msgspec.field(default_factory=list)
    change: Change | None = None
    left: Left | None = None
    words: Annotation | None = None
    _event: Event | None = None
    _error: BaseException | None = None

    @property
    def event(self) -> Event:
        """The event that answers the command, once it is worked out."""
        return self.appends[-1][0]

    @property
    def done(self) -> bool:
        """Whether it has its outcome."""
        return self._event is not None or self._error is not None

    def answer(self, event: Event) -> None:
        """Its event is durable and visible."""
        self._event = event
        if self.told is not None:
            self.told(self)

    def fail(self, error: BaseException) -> None:
        """It came to nothing, or what it came to is not visible; OutcomeUnknown where another
        process may have committed it all the same."""
        if self.left is not None and isinstance(error, Exception) and not self.left.is_refuted():
            error = OutcomeUnknown(
                f"{error}; but another process may have recorded it. Send it again with the same"
                " idempotency key: then it is recorded once. Without a key, look whether it is"
                " there first"
            )
        self._error = error
        if self.told is not None:
            self.told(self)

    @property
    def error(self) -> BaseException | None:
        """Why it came to nothing."""
        return self._error

    def result(self) -> Event:
        """The event; raises the error."""
        if self._error is not None:
            raise self._error
        assert self._event is not None, "asked for before it was done"
        return self._event
