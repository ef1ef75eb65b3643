"""What was measured and pushed, and the trials that it decides."""

from typing import Literal

from pydantic import Field

from weightledger.api.rest.answers import Exact


class Rollup(Exact):
    """Measurements of one metric, summed up over a span of time and of states."""

    id: str
    object: Literal["rollup"]
    metric: str
    unit: str
    source: str = Field(description="engine, server, evaluator or pushed: who measured.")
    first_seq: int = Field(description="The first state that the values were observed at.")
    last_seq: int = Field(description="The last of them; the same where there was only one.")
    start: str
    end: str
    count: int
    mean: float
    stddev: float | None = Field(description="Null for a single value.")
    min: float
    max: float
    p50: float = Field(description="Quantiles are within 1 % of themselves.")
    p90: float
    p99: float


class Collection(Exact):
    """What became of what was measured."""

    waiting: int = Field(description="Rollups that are not written yet though they are over.")
    lost: int = Field(description="Values that could not be kept, since the server was started.")
    fault: str | None = Field(description="Why the last write failed; null when it did not.")
    server_fault: str | None = Field(
        description="Why a driven server's own figures could not be read; null when they could."
    )


class RollupList(Exact):
    """A page of measurements, newest first."""

    object: Literal["list"]
    data: list[Rollup]
    first_id: str | None
    last_id: str | None
    has_more: bool
    collection: Collection


class PushData(Exact):
    """How many samples were taken, and how many were there already."""

    accepted: int
    duplicates: int


class PushReply(Exact):
    """Samples that were taken; all of them or none."""

    success: Literal[True]
    message: str
    data: PushData


class Trial(Exact):
    """An update on trial beside the state before it."""

    id: str = Field(description="The id of the newest update on trial.")
    object: Literal["trial"]
    status: Literal["running", "promoted", "rolled back", "timed out", "aborted"]
    of: int = Field(description="Seq of the newest update on trial.")
    beside: int = Field(description="Seq of the settled state, which the other requests meet.")
    share: float = Field(description="Share of the requests that meet the new state.")
    policy: str
    started_at: str
    ended_at: str | None
    requests_old: int | None = Field(description="Requests that met the settled state.")
    requests_new: int | None = Field(description="Requests that met the new one.")
    reason: str | None


class TrialList(Exact):
    """The trial that runs, and the last that ended, newest first."""

    object: Literal["list"]
    data: list[Trial]
    first_id: str | None
    last_id: str | None
    has_more: bool


class TrialData(Exact):
    """How a trial was ended by hand."""

    trial_id: str
    event_id: str
    status: Literal["promoted", "aborted"]


class TrialReply(Exact):
    """A trial that was promoted or aborted."""

    success: Literal[True]
    message: str
    data: TrialData
