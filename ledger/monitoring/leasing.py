"""Leases that are measured: how long they were held, at which state, and what became of it.

Written out rather than as a generator, which would take a microsecond of every inference.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from time import perf_counter
from types import TracebackType

from weightledger.ledger.engines import Live
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.monitoring.intake import Intake
from weightledger.ledger.monitoring.samples import Measuring


class PlainLease:
    """The lease that `lease` gives, of a request that says nothing of itself."""

    __slots__ = ("_intake", "_lease", "_leasing", "_seq", "_started")

    def __init__(
        self, lease: Callable[[str | None], AbstractContextManager[Live]], intake: Intake
    ) -> None:
        self._lease = lease
        self._intake = intake

    def __enter__(self) -> Live:
        self._started = perf_counter()
        self._leasing = leasing = self._lease(None)
        live = leasing.__enter__()
        self._seq = live.seq
        return live

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        took_ms = 1000 * (perf_counter() - self._started)
        if kind is None:
            self._intake.answered(self._seq, took_ms)
        else:
            _tell(self._intake, self._seq, Measuring(), error, self._started, took_ms)
        return self._leasing.__exit__(kind, error, trace)


class MeasuredLease:
    """The lease that `lease` gives, with what `measuring` says of the request.

    `through` makes what is given of what is leased.
    """

    __slots__ = ("_intake", "_lease", "_leasing", "_measuring", "_seq", "_started", "_through")

    def __init__(
        self,
        lease: Callable[[str | None], AbstractContextManager[Live]],
        intake: Intake,
        measuring: Measuring,
        through: Callable[[Live], Live] | None = None,
    ) -> None:
        self._lease = lease
        self._intake = intake
        self._measuring = measuring
        self._through = through

    def __enter__(self) -> Live:
        self._started = perf_counter()
        self._leasing = leasing = self._lease(self._measuring.key)
        live = leasing.__enter__()
        self._seq = live.seq
        if self._through is None:
            return live
        try:
            return self._through(live)
        except BaseException as error:
            leasing.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        took_ms = 1000 * (perf_counter() - self._started)
        _tell(self._intake, self._seq, self._measuring, error, self._started, took_ms)
        return self._leasing.__exit__(kind, error, trace)


def _tell(
    intake: Intake,
    seq: int,
    told: Measuring,
    error: BaseException | None,
    started: float,
    took_ms: float,
) -> None:
    """Count an inference: a failed one where the block raised, unless that was a LedgerError, and
    none where it was given up."""
    if isinstance(error, LedgerError):
        told.counts &= told.outcome != "ok"
    elif isinstance(error, Exception):
        told.outcome = "failed" if told.outcome == "ok" else told.outcome
    elif error is not None:
        told.counts = False
    if told.counts:
        queue_ms = None if told.arrived is None else 1000 * (started - told.arrived)
        unit = None if told.key is None else hash(told.key)
        intake.record(seq, took_ms, told.outcome, queue_ms, told.items, unit)
