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
    replica: str | None = Field(description="The replica that served; null for this server.")
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


class DriftStream(Exact):
    """A stream that is looked at for drift."""

    object: Literal["stream"]
    metric: str
    detector: str
    values: int = Field(description="Values that were looked at.")
    usual: float | None = Field(description="Their usual mean; null while it is learnt.")
    recent: float | None = Field(description="The mean of the last 200.")
    drifts: int
    last_at: str | None = Field(description="When it drifted last.")


class DriftList(Exact):
    """All streams that are looked at; none unless --drift-metrics names some."""

    object: Literal["list"]
    data: list[DriftStream]
    first_id: str | None
    last_id: str | None
    has_more: bool


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


class EvidencePoint(Exact):
    """What was known of a trial at a moment."""

    at: str
    n_old: int = Field(description="Values of the settled state by then.")
    n_new: int = Field(description="Values of the new one.")
    estimate: float | None = Field(description="By how much the new state is worse.")
    lower: float | None = Field(description="It is worse by at least this; null while unknown.")
    upper: float | None = Field(description="It is worse by no more than this.")
    statistic: float = Field(description="Of the test: `needed` of it is harm.")


class EvidenceSeries(Exact):
    """One test of a metric, oldest point first."""

    metric: str
    aspect: Literal["typical", "tail", "event"] = Field(
        description="The typical request, the slowest twentieth, or how frequent it is."
    )
    scale: Literal["relative", "difference"] = Field(
        description="0.1 is 10 % worse, or ten percentage points."
    )
    limit: float = Field(description="What is worse by more than this is harm.")
    alpha: float
    needed: float
    whole: bool = Field(description="False where the picture ends before the trial.")
    points: list[EvidencePoint]


class TrialEvidence(Exact):
    """What a trial showed by and by; no series of a trial that this server has not run."""

    object: Literal["trial_evidence"]
    trial_id: str
    series: list[EvidenceSeries]


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
