"""Looking after a trial: its time may be over, or another process may have ended it."""

import logging
import threading

from weightledger.ledger import events
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.events import Event
from weightledger.ledger.history.trials import is_promoted, on_trial
from weightledger.ledger.monitoring.cases import Case
from weightledger.ledger.monitoring.trial_course import Course
from weightledger.ledger.store import EventFilter

logger = logging.getLogger("weightledger.ledger.manager")

_RETRY_S = 1.0
_MOST_JOINED = 1000


class Clock:
    """Looks at a course when there is reason to, on a thread of its own, until it is closed: events
    of another process are visible, or the trial's time is over."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._seen = -1
        self._ended = False
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="ledger-trials", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._ended = True
        self._course.moved.set()
        self._thread.join()

    def wake(self) -> None:
        """Look soon. Never waits."""
        self._course.moved.set()

    def _run(self) -> None:
        course = self._course
        pause_s: float | None = None
        while True:
            course.moved.wait(pause_s)
            course.moved.clear()
            if self._ended:
                return
            try:
                self.look()
                with course.lock:
                    pause_s = course.due_s
            except LedgerError as error:
                logger.warning("the trial cannot be looked after now: %s", error)
                pause_s = _RETRY_S
            except Exception:
                logger.exception("the trial cannot be looked after now")
                pause_s = _RETRY_S

    def look(self) -> None:
        """Look now: what another process wrote is on trial before anybody decides about it."""
        with self._looking:
            self._look()

    def _look(self) -> None:
        course = self._course
        with course.lock:
            case = course.case
        if (case is None) == course.sides.differ():
            self._catch_up()
        elif case is not None:
            self._join(case)
            if not self._is_promoted(case):
                with course.lock:
                    if course.case is case and course.due_s == 0:
                        course.run_out()

    def _join(self, case: Case) -> None:
        """What another process made live on top of what is on trial is tried with it.

        Where it rolled back and went on from there, that is another trial.
        """
        course = self._course
        log = course.log
        head = log.live.head.state_seq
        if head in case.seqs:
            return
        where = EventFilter(
            kinds=sorted(events.STATE_CHANGING), min_seq=case.of.seq + 1, max_seq=head
        )
        later = log.history.events(where, limit=_MOST_JOINED)[::-1]
        with course.lock:
            if course.case is not case or case.state == "closed":
                return
            if any(event.kind == events.ROLLED_BACK for event in later):
                course.close()  # what is live now is looked at next
                return
            for event in later:
                course.follow(event)

    def _is_promoted(self, case: Case) -> bool:
        """Whether another process promoted it; the log is asked when it has grown."""
        course = self._course
        head = course.log.live.head.seq
        if head == self._seen:
            return False
        promoted = is_promoted(course.log.history, case.of.state_seq)
        self._seen = head
        if promoted:
            course.end(case)
        return promoted

    def _is_new(self, event: Event) -> bool:
        """Whether it is an update that nobody has decided about."""
        if event.kind != events.UPDATED:
            return False
        return not is_promoted(self._course.log.history, event.seq)

    def _catch_up(self) -> None:
        """Another process wrote: what is live goes on trial, unless that is decided already."""
        course = self._course
        log = course.log
        event = on_trial(log.history) or log.history.require(log.live.head.state_seq)
        with course.lock:
            if not course.sides.differ():
                course.settle()
            elif course.case is not None:
                return
            elif self._is_new(event):
                course.open(event)
            else:
                course.settle()
