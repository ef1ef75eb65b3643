"""Measurements from outside: checked whole before any of them is taken.

What is pushed may decide about an update, so nothing is guessed: a name that is not known, a value
that the metric cannot have, a state that the log does not have, or a time that cannot be is an
error that names the sample, and then none is taken. Samples may come in any order, and more than
once: one that has an `id` counts once, and so does one that is told from its equals by its time.
"""

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.history.positions import parse_time
from weightledger.ledger.history.reader import History
from weightledger.ledger.monitoring.metrics import METRICS, is_known, range_of
from weightledger.ledger.monitoring.samples import Sample

MOST_SAMPLES = 1000
MAX_ID = 255
MAX_REPLICA = 200
AHEAD_S = 300.0
"""How far a clock elsewhere may be ahead of this one."""

_COARSE_US = 1000
# Several requests end in one millisecond: a time in whole ones, or in seconds, does not tell which
# of them a sample is about, and a failed one must not be taken for another that failed.

FIELDS = ("metric", "value", "seq", "time", "id", "replica")

Push = Callable[[Sequence[tuple[Sample, str | None]]], list[bool]]
"""Takes samples with the ids they have; gives which of them are new. One without an id is told by
what it says, and by how many of the same push said the same before it."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """How many samples were taken, and how many were there already."""

    accepted: int
    duplicates: int


def push(
    sent: Sequence[Mapping[str, Any]],
    history: History,
    to: Push,
    *,
    now_us: int,
    keep_s: float,
) -> Pushed:
    """Take samples, all or none.

    Each is a mapping with `metric`, `value`, and if they are known `seq` (that of any event; the
    live state's by default), `time` (ISO 8601, or seconds since 1970; now by default), `id`, and
    `replica`, who served it, which wants the seq. Raises InvalidRequest.
    """
    if not 1 <= len(sent) <= MOST_SAMPLES:
        raise InvalidRequest(
            f"samples must be 1 to {MOST_SAMPLES}, got {len(sent)}: send them in several pushes",
            param="samples",
        )
    states = _States(history)
    taken = [
        _checked(one, f"samples[{number}]", states, now_us, keep_s)
        for number, one in enumerate(sent)
    ]
    fresh = to(taken)
    return Pushed(sum(fresh), len(fresh) - sum(fresh))


class _States:
    """The state that was live after an event; each is looked up once."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._head = history.head()
        self._known = {self._head.seq: self._head.state_seq}

    def seq_of(self, seq: Any, where: str) -> int:
        if seq is None:
            return self._head.state_seq
        if isinstance(seq, bool) or not isinstance(seq, int) or not 0 <= seq <= self._head.seq:
            raise InvalidRequest(
                f"{where}.seq must be that of an event, 0 to {self._head.seq}, got {seq!r}",
                param=f"{where}.seq",
            )
        if seq not in self._known:
            self._known[seq] = self._history.require(seq).state_seq
        return self._known[seq]


def _checked(
    one: Mapping[str, Any], where: str, states: _States, now_us: int, keep_s: float
) -> tuple[Sample, str | None]:
    if not isinstance(one, Mapping):
        raise InvalidRequest(f"{where} must be an object, got {one!r:.80}", param=where)
    unknown = sorted(map(str, one.keys() - set(FIELDS)))
    if unknown:
        raise InvalidRequest(
            f"{where} has a field {unknown[0]!r}; fields are {', '.join(FIELDS)}",
            param=f"{where}.{unknown[0]}",
        )
    metric = one.get("metric")
    if not isinstance(metric, str) or not is_known(metric):
        raise InvalidRequest(
            f"{where}.metric must be one of {', '.join(METRICS)}, or a name of your own such as"
            f" custom.ndcg (a-z, 0-9, _), got {metric!r:.80}",
            param=f"{where}.metric",
        )
    value = _value(one.get("value"), metric, where)
    at_us = _time(one.get("time"), where, now_us, keep_s)
    seq = states.seq_of(one.get("seq"), where)
    sample_id = _id(one.get("id"), where)
    if sample_id is None and (one.get("time") is None or at_us % _COARSE_US == 0):
        sample_id = uuid.uuid4().hex  # nothing tells it from its equals, which all count
    supposed = one.get("seq") is None
    sample = Sample(metric, value, at_us, seq, "pushed", _replica(one, where), supposed)
    return sample, sample_id


def _value(value: Any, metric: str, where: str) -> float:
    least, most = range_of(metric)
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) <= most else math.nan
    if not least <= number <= most:
        raise InvalidRequest(
            f"{where}.value of {metric} must be a number from {least:g} to {most:g}, got"
            f" {value!r:.80}",
            param=f"{where}.value",
        )
    return number


def _time(moment: Any, where: str, now_us: int, keep_s: float) -> int:
    if moment is None:
        return now_us
    at_us: int | None = None
    if isinstance(moment, str):
        at_us = parse_time(moment)
    elif isinstance(moment, int | float) and not isinstance(moment, bool):
        at_us = int(moment * 1e6) if abs(moment) < 1e12 else None
    if at_us is None:
        raise InvalidRequest(
            f"{where}.time must be seconds since 1970 or a time such as 2026-11-22T10:00:00Z, got"
            f" {moment!r:.80}",
            param=f"{where}.time",
        )
    ahead_s = (at_us - now_us) / 1e6
    if ahead_s > AHEAD_S:
        raise InvalidRequest(
            f"{where}.time is {ahead_s:.0f} s in the future of this server; look at the clocks",
            param=f"{where}.time",
        )
    if -ahead_s >= keep_s:
        raise InvalidRequest(
            f"{where}.time is {-ahead_s / 86400:.1f} days ago; measurements are kept for"
            f" {keep_s / 86400:g} days (--metrics-retention-days)",
            param=f"{where}.time",
        )
    return at_us


def _replica(one: Mapping[str, Any], where: str) -> str | None:
    replica = one.get("replica")
    if replica is None:
        return None
    if not isinstance(replica, str) or not 1 <= len(replica) <= MAX_REPLICA:
        raise InvalidRequest(
            f"{where}.replica must have 1 to {MAX_REPLICA} characters, got {replica!r:.80}",
            param=f"{where}.replica",
        )
    if one.get("seq") is None:
        raise InvalidRequest(
            f"{where}.seq is missing: what replica {replica!r} served need not be the live state",
            param=f"{where}.seq",
        )
    return replica


def _id(sample_id: Any, where: str) -> str | None:
    if sample_id is None:
        return None
    if not isinstance(sample_id, str) or not 1 <= len(sample_id) <= MAX_ID:
        raise InvalidRequest(
            f"{where}.id must have 1 to {MAX_ID} characters, got {sample_id!r:.80}",
            param=f"{where}.id",
        )
    return sample_id
