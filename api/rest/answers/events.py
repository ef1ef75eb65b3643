"""Events of the log, counts of them, and what proves them."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from weightledger.api.rest.answers import Exact


class Event(BaseModel):
    """One event of the log."""

    id: str = Field(description="The update id, the version id, else event_{seq}.")
    object: Literal["event"]
    seq: int
    kind: str
    recorded_at: str
    actor: str | None
    reason: str | None
    request_id: str | None
    idempotency_key: str | None
    state_seq: int = Field(description="The last state change at or before this event.")
    node: int = Field(description="The state the model is in afterwards.")
    state_before: str | None
    state_after: str
    payload_bytes: int
    event_hash: str
    metadata: dict[str, Any] | None
    redacted: list[str] = Field(description="What it had of actor, reason and metadata, and lost.")
    facts: dict[str, Any] = Field(description="What events of this kind record.")


class EventList(Exact):
    """A page of events, newest first."""

    object: Literal["list"]
    data: list[Event]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ActivityCount(Exact):
    """How many events there were on a day, of one kind, by one actor."""

    day: str = Field(examples=["2026-11-22"], description="In UTC.")
    kind: str
    outcome: Literal["applied", "rejected"] | None = Field(description="Of updates.")
    actor: str | None
    events: int


class ActivityList(Exact):
    """Counts of events, the newest day first."""

    object: Literal["list"]
    data: list[ActivityCount]
    total_events: int


class Density(Exact):
    """How many events there were in each step of time, the first step first."""

    object: Literal["density"]
    start: str = Field(examples=["2026-11-22T10:00:00Z"], description="When the first step begins.")
    step_seconds: int
    events: list[int]


class Verification(BaseModel):
    """The tensors served right now, hashed afresh, are the ledger's."""

    object: Literal["verification"]
    seq: int
    digest: str
    tensors: int
    ok: Literal[True]


class Consistency(Exact):
    """A proof between two lengths of the log (RFC 6962, section 2.1.2); hashes are base64."""

    object: Literal["consistency_proof"]
    first: int
    second: int
    first_root: str
    second_root: str
    hashes: list[str]


class Redaction(Exact):
    """Texts that were taken away from beside events, or with `dry_run` would be."""

    object: Literal["redaction"]
    model: str
    dry_run: bool
    fields: list[Literal["actor", "reason", "metadata"]]
    events: list[str] = Field(description="The events that were asked for.")
    recorded_as: list[str] = Field(description="The event that says so; none for a dry run.")
