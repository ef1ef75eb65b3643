"""What was learnt, as the ledger tells it: nothing is remembered beside the events."""

from collections.abc import Mapping
from typing import Any

from ledger import Event, Log
from rules.dtesn.planning import OPERATION

KINDS = ("updated", "update_rejected")


def learnt(log: Log) -> list[Event]:
    """Events of learning, newest first; refused ones too."""
    return [event for event in log.events(kinds=KINDS) if event.body.get("operation") == OPERATION]


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
