"""Whether the server lives, reads and writes."""

from typing import Literal

from pydantic import BaseModel, Field

from weightledger.api.rest.answers import Exact
from weightledger.ledger.fleet.readiness import State


class Alive(Exact):
    """The process answers."""

    status: Literal["ok"]


class Evidence(Exact):
    """How many events the last signed checkpoint has, and the last that witnesses cosigned.

    `problems` is what keeps newer events from being vouched for, for whoever may know more.
    """

    signed: int
    witnessed: int | None = None
    quorum: int | None = None
    problems: list[str] | None = None


class Ready(BaseModel):
    """What is served is what the log says, by all that is known here."""

    status: Literal["ok"]
    state: State
    model: str
    replica: str | None = Field(None, description="The name of a replica.")
    seq: int = Field(description="The state that is served, as X-Weights-Seq names it.")
    digest: str
    target_seq: int = Field(description="The last event of the log, as far as is known.")
    lag_events: int
    lag_s: float | None = Field(description="For how long there have been events not shown yet.")
    stale: bool = Field(description="The database was not heard of for a moment.")
    reason: str | None = Field(description="What is not as it should be.")
    database: str | None = Field(None, description="The database and its library's version.")
    evidence: Evidence | None = None


class WritesNow(Exact):
    """Whether the last writes went through; if not, since when and why."""

    status: Literal["ok", "failing"]
    code: str | None = None
    refused: int | None = None
    since: str | None = None


class Healthy(BaseModel):
    """Reading works; "degraded" when writes do not."""

    status: Literal["ok", "degraded"]
    model: str
    seq: int
    digest: str
    lag_events: int
    database: str | None = None
    writes: WritesNow


class NotReady(BaseModel):
    """Why not, in few words; `detail` for whoever may know more."""

    status: Literal["unavailable"]
    reason: str
    detail: str | None = None
    state: State | None = None
    replica: str | None = None
    seq: int | None = None
    digest: str | None = None
    target_seq: int | None = None
    lag_events: int | None = None
    lag_s: float | None = None
    stale: bool | None = None
