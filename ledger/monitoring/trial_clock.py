"""Looking after a trial: its time may be over, or another process may have ended it."""

import logging
import threading
import time

from weightledger.ledger import events
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.monitoring.cases import Case
from weightledger.ledger.monitoring.trial_course import Course
from weightledger.ledger.monitoring.trial_log import is_promoted

logger = logging.getLogger("weightledger.ledger.manager")

_LOOK_S = 0.25


class Clock:
    """Looks at a course again and again, on a thread of its own, until it is closed."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._seen = -1
        self._stop = threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="ledger-trials", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                self.look()
            except LedgerError as error:
                logger.warning("the trial cannot be looked after now: %s", error)
            except Exception:
                logger.exception("the trial cannot be looked after now")

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
        elif case is not None and not self._is_promoted(case):
            with course.lock:
                late = time.monotonic() - case.started >= course.rules.timeout_s
                if late and course.case is case:
                    course.run_out()

    def _is_promoted(self, case: Case) -> bool:
        """Whether another process promoted it; the log is asked when it has grown."""
        course = self._course
        head = course.log.live.head.seq
        if head == self._seen:
            return False
        self._seen = head
        if not is_promoted(course.log.history, case.of.state_seq):
            return False
        course.end(case)
        return True

    def _catch_up(self) -> None:
        """Another process wrote: what is live goes on trial, unless that is decided already."""
        course = self._course
        log = course.log
        event = log.history.require(log.live.head.state_seq)
        with course.lock:
            if not course.sides.differ():
                course.settle()
            elif course.case is not None:
                return
            elif event.kind == events.UPDATED and not is_promoted(log.history, event.seq):
                course.open(event)
            else:
                course.settle()
