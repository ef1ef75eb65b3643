"""Replicas, what they served, and rollouts."""

from typing import Any, Literal

from pydantic import Field

from weightledger.api.rest.answers import Exact


class ReplicaItem(Exact):
    """A replica as it was last heard of."""

    object: Literal["replica"]
    replica: str
    state: str = Field(description="Its own word (see /readyz), or 'gone'.")
    reason: str | None
    seq: int | None = Field(description="The state that it shows, as X-Weights-Seq names it.")
    digest: str | None
    lag_events: int | None
    lag_s: float
    target: str = Field(description="The state that the log has it show: 'head' or seq:N.")
    cohort: int | None = Field(description="During a rollout: its percent, 0 to 99.")
    incarnation: int
    host: str
    url: str | None
    release: str
    started_at: str
    seen_at: str


class ReplicaList(Exact):
    """Replicas, by name."""

    object: Literal["list"]
    data: list[ReplicaItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ServedReply(Exact):
    """What a replica served at a time; not `known`: what it showed last."""

    object: Literal["served"]
    replica: str
    at: str
    known: bool
    seq: int | None
    digest: str | None
    since: str | None
    until: str | None
    incarnation: int | None
    reason: str | None


class RolloutItem(Exact):
    """A rollout: `percent` of the replicas show `to`, the others `base`."""

    object: Literal["rollout"]
    id: str
    status: Literal["started", "advanced", "finished", "aborted"]
    running: bool
    percent: int
    to: str = Field(description="'head' or seq:N.")
    base: str = Field(description="'head' or seq:N.")
    started_seq: int
    changed_seq: int
    changed_at: str
    reason: str | None = Field(description="A policy's, where it was one that ended it.")
    evidence: dict[str, Any]


class RolloutList(Exact):
    """Rollouts, newest first."""

    object: Literal["list"]
    data: list[RolloutItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class RolloutReply(Exact):
    """What became of a rollout."""

    success: Literal[True]
    message: str
    data: RolloutItem
