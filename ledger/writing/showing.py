"""Showing what was appended: it stands, whatever fails here."""

import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from weightledger.ledger import events
from weightledger.ledger.errors import EngineUnavailable, PublishFailed, SeqTaken
from weightledger.ledger.events import NO_WORDS, Annotation, Event, seal
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.change import Change
from weightledger.ledger.projection.projector import Projector
from weightledger.ledger.store.attached import NOTHING, Append
from weightledger.ledger.writing.handlers.rollbacks import answer

logger = logging.getLogger(__name__)


class Committed(msgspec.Struct, frozen=True):
    """An event this process wrote, with the seconds it took in all, in the database, and from there
    until it was visible. Of one that another process appended for it the second is None."""

    event: Event
    total_s: float
    append_s: float | None
    annotation: Annotation = NO_WORDS
    publish_s: float = 0.0


class Showing:
    """Brings live weights to what the writer of a log appended; `afterwards` hears of each event
    that is appended here."""

    def __init__(
        self, history: History, projector: Projector, afterwards: Callable[[Committed], None]
    ) -> None:
        self._history = history
        self._projector = projector
        self._afterwards = afterwards

    def show(self, appends: Sequence[Append], change: Change | None) -> None:
        """Make what was appended visible; what fails here does not make it unrecorded."""
        new = [event for event, _, _ in appends]
        last = new[-1]
        try:
            if events.STATE_CHANGING.isdisjoint([event.kind for event in new]):
                self._projector.note(last)
            else:
                self._show(last, change)
                self._projector.way.passed(new)
        except Exception as error:
            logger.exception("%s of %s is recorded but not shown", last.name, last.model)
            raise not_shown(last, error) from error

    def _show(self, event: Event, change: Change | None) -> None:
        try:
            self._projector.show(event, change)
        except PublishFailed as error:
            self._answer(event, error)

    def _answer(self, refused: Event, error: PublishFailed) -> None:
        """Append the rollback of an event that the engine could not be brought to.

        Another process may have written on top of it: then its state is the one to show.
        """
        logger.error("%s of %s: %s", refused.name, refused.model, error)
        started = time.perf_counter()
        draft = answer(self._projector.live, refused, str(error))
        event = seal(draft, self._history.model, refused, time.time_ns() // 1000)
        try:
            self._history.store.append((event, NO_WORDS, NOTHING))
        except SeqTaken:
            self._projector.catch_up(self._history)
            return
        appended = time.perf_counter()
        self._projector.show(event)
        shown = time.perf_counter()
        took = Committed(event, shown - started, appended - started, publish_s=shown - appended)
        self._afterwards(took)


def not_shown(event: Event, error: BaseException) -> EngineUnavailable:
    """For whoever wrote an event that stands, and is not visible here."""
    return EngineUnavailable(
        f"{event.name} is recorded, but the live weights could not be brought to it"
        f" ({error}); the next write or a restart brings them there"
    )
