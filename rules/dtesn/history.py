"""What was learnt, as the ledger tells it: nothing is remembered beside the events."""

from collections import Counter, deque
from collections.abc import Mapping
from threading import Lock
from typing import Any

from weightledger import Event, Log
from weightledger.rules.dtesn.plan import OPERATION

KINDS = ("updated", "update_rejected")
_RECENT = 10
_PAGE = 4096
"""Events that are read at a time, so that a long log is never all in memory."""


def learnt(log: Log, limit: int | None = None) -> list[Event]:
    """Events of learning, newest first; refused ones too, at most `limit`."""
    found: list[Event] = []
    high = _last_seq(log)
    while high >= 0 and (limit is None or len(found) < limit):
        found += _of_learning(log, high - _PAGE + 1, high)
        high -= _PAGE
    return found[:limit]


class Counted:
    """How many steps the ledger has, applied and refused, and the last ones' rules.

    Only counts are kept, and each look reads the events since the last one.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = Lock()
        self._seen = -1
        self._outcomes: Counter[str] = Counter()
        self._recent: deque[str] = deque(maxlen=_RECENT)

    def up_to_date(self) -> dict[str, Any]:
        """The counts, as the status shows them."""
        with self._lock:
            last = _last_seq(self._log)
            while self._seen < last:
                high = min(self._seen + _PAGE, last)
                for event in reversed(_of_learning(self._log, self._seen + 1, high)):
                    self._outcomes[event.kind] += 1
                    self._recent.append(learning_type(event.body["rule"]["id"]))
                self._seen = high
            return {
                "total_learning_updates": self._outcomes["updated"],
                "refused_learning_updates": self._outcomes["update_rejected"],
                "recent_algorithms": list(self._recent),
            }


def _last_seq(log: Log) -> int:
    """Of all events, also those that other processes appended."""
    return log.events(limit=1)[0].seq


def _of_learning(log: Log, low: int, high: int) -> list[Event]:
    found = log.events(kinds=KINDS, min_seq=low, max_seq=high)
    return [event for event in found if event.body.get("operation") == OPERATION]


def learning_type(rule_id: str) -> str:
    """The specification's name of a delta-only rule (hebbian, stdp …), else the rule's id."""
    return rule_id.removesuffix("-delta")


def entry(event: Event) -> dict[str, Any]:
    """One event of learning, as `get_learning_history` lists it."""
    body = event.body
    return {
        "update_id": event.name,
        "timestamp": event.timestamp,
        "success": event.kind == "updated",
        "reason": body.get("reason"),
        "parameter_name": body["parameter"],
        "stream": body["stream"],
        "performance_feedback": body["feedback"],
        "learning_type": learning_type(body["rule"]["id"]),
        "metrics": metrics(body),
    }


def metrics(body: Mapping[str, Any]) -> dict[str, Any]:
    """Measurements of one step."""
    return {
        "learning_type": learning_type(body["rule"]["id"]),
        "learning_rate": body.get("learning_rate"),
        "delta_norm": body.get("delta_norm"),
        "proposals": body["learnt"]["proposals"],
        "iterations": body["learnt"]["iterations"],
        "converged": body["learnt"]["converged"],
        **body["learnt"]["metrics"],
    }


def result(event: Event, update: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to an update through a rule: that of every update, and what was learnt."""
    found = dict(update)
    if event.body.get("operation") == OPERATION:
        found["data"] = {
            "learning_algorithm": learning_type(event.body["rule"]["id"]),
            "dtesn_metrics": metrics(event.body),
        }
    return found
