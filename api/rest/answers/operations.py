"""Whether the server lives, reads and writes."""

from typing import Literal

from pydantic import BaseModel, Field

from weightledger.api.rest.answers import Exact


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
    """The database answers, and what is served is the head of the log."""

    status: Literal["ok"]
    model: str
    seq: int
    digest: str
    lag_events: int
    database: str = Field(description="The database and its library's version.")
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
    database: str
    writes: WritesNow


class NotReady(BaseModel):
    """Why not, in few words; `detail` for whoever may know more."""

    status: Literal["unavailable"]
    reason: str
    detail: str | None = None
