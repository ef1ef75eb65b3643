"""The replies, for the document: routes give plain dicts, and the tests hold them against this."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Metrics = dict[str, float]
"""`accuracy`, `latency_ms`, `throughput`, `memory_usage_mb`, `timestamp`: what was measured."""


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid")


class UpdateData(BaseModel):
    """An update that was applied has its running count; one that was refused has the reason."""

    update_id: str = Field(examples=["update_1_1795397017"])
    update_count: int | None = None
    success: bool | None = Field(None, description="False when it was refused.")
    reason: str | None = None
    pre_metrics: Metrics | None = Field(None, description="Of the state before.")
    post_metrics: Metrics | None = Field(None, description="Of the candidate.")


class UpdateReply(_Exact):
    """An update: `success` false when a guard or evaluator refused it, which is recorded too."""

    success: bool
    message: str
    data: UpdateData


class LearningReply(_Exact):
    """An update by a learning rule, or an action that waits for its reward."""

    success: bool
    message: str
    data: dict[str, Any]


class VersionData(_Exact):
    """A version by its id."""

    version_id: str = Field(examples=["v1_1795397018"])


class VersionReply(_Exact):
    """A version that was created."""

    success: Literal[True]
    message: str
    data: VersionData


class PinData(_Exact):
    """Whether a version is kept for ever."""

    version_id: str
    pinned: bool


class PinReply(_Exact):
    """A version that was pinned or unpinned."""

    success: Literal[True]
    message: str
    data: PinData


class RollbackData(_Exact):
    """Where a rollback led to."""

    rolled_back_to: str
    timestamp: float = Field(description="When that state came about, seconds since 1970.")
    description: str


class RollbackReply(_Exact):
    """A rollback."""

    success: Literal[True]
    message: str
    data: RollbackData


class Version(_Exact):
    """A listed version."""

    version_id: str
    timestamp: float
    description: str
    is_active: bool = Field(description="The nearest named ancestor of what is served.")
    performance_metrics: Metrics | None = None


class VersionDetails(BaseModel):
    """A listed version, with where it stands in the log."""

    version_id: str
    timestamp: float
    description: str
    is_active: bool
    performance_metrics: Metrics | None = None
    recorded_at: str
    pinned: bool
    seq: int
    digest: str


class VersionList(_Exact):
    """Listed versions, newest first."""

    versions: list[Version]
    total_count: int


class StatusConfig(_Exact):
    """The server's configuration of updates."""

    max_versions: int
    checkpoint_interval: int
    auto_rollback_threshold: float
    incremental_learning_enabled: bool
    versioning_enabled: bool


class Status(BaseModel):
    """Where the model stands."""

    current_version: str | None
    total_versions: int
    total_updates: int
    config: StatusConfig
    recent_performance: list[Metrics]


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


class EventList(_Exact):
    """A page of events, newest first."""

    object: Literal["list"]
    data: list[Event]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Rollup(_Exact):
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


class Collection(_Exact):
    """What became of what was measured."""

    waiting: int = Field(description="Rollups that are not written yet though they are over.")
    lost: int = Field(description="Values that could not be kept, since the server was started.")
    fault: str | None = Field(description="Why the last write failed; null when it did not.")
    server_fault: str | None = Field(
        description="Why a driven server's own figures could not be read; null when they could."
    )


class RollupList(_Exact):
    """A page of measurements, newest first."""

    object: Literal["list"]
    data: list[Rollup]
    first_id: str | None
    last_id: str | None
    has_more: bool
    collection: Collection


class PushData(_Exact):
    """How many samples were taken, and how many were there already."""

    accepted: int
    duplicates: int


class PushReply(_Exact):
    """Samples that were taken; all of them or none."""

    success: Literal[True]
    message: str
    data: PushData


class Approval(_Exact):
    """A write that waits or waited for a second person."""

    id: str = Field(examples=["approval_3"])
    object: Literal["approval"]
    state: Literal["pending", "approved", "carried out", "rejected", "lapsed"]
    request: dict[str, Any] = Field(description="The command that was asked for, as data.")
    requested_by: str | None
    requested_at: str
    reason: str | None
    metadata: dict[str, Any] | None
    decided_by: str | None
    decided_at: str | None
    outcome: str | None = Field(description="The event that it led to, once carried out.")
    lapsed: str | None = Field(description="Why it could not be carried out any more.")


class ApprovalList(_Exact):
    """Writes that wait or waited, newest first."""

    object: Literal["list"]
    data: list[Approval]


class WaitingData(_Exact):
    """What to ask for, or to approve."""

    approval_id: str = Field(examples=["approval_3"])


class Waiting(_Exact):
    """Under the two-person rule: recorded as asked for, not carried out yet."""

    success: Literal[False]
    message: str
    data: WaitingData


class ActivityCount(_Exact):
    """How many events there were on a day, of one kind, by one actor."""

    day: str = Field(examples=["2026-11-22"], description="In UTC.")
    kind: str
    outcome: Literal["applied", "rejected"] | None = Field(description="Of updates.")
    actor: str | None
    events: int


class ActivityList(_Exact):
    """Counts of events, the newest day first."""

    object: Literal["list"]
    data: list[ActivityCount]
    total_events: int


class Parameter(_Exact):
    """One tensor of the model."""

    name: str
    object: Literal["parameter"]
    dtype: str
    shape: list[int]
    digest: str
    update_count: int


class ParameterList(_Exact):
    """A page of parameters, by name."""

    object: Literal["list"]
    data: list[Parameter]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DiffSide(_Exact):
    """One of two states that are compared."""

    position: str
    id: str
    seq: int
    digest: str


class GroupDiff(BaseModel):
    """What differs in one layer or module; norms are those of the tensors that differ."""

    name: str
    tensors: int
    tensors_changed: int
    elements: int
    changed: int = Field(description="Elements whose bits differ.")
    share: float
    largest_change: float | None
    change_norm: float | None
    relative_norm: float | None
    became_not_finite: int


class TensorDiff(BaseModel):
    """How one tensor differs; a number that is not defined is null."""

    name: str
    kind: Literal["changed", "added", "removed", "replaced"]
    dtype: str
    shape: list[int]
    elements: int
    changed: int = Field(description="Elements whose bits differ.")
    share: float
    largest_change: float | None
    mean_change: float | None = Field(description="Of the elements that changed.")
    change_norm: float | None
    norm_before: float | None
    norm_after: float | None
    relative_norm: float | None = Field(description="change_norm / norm_before")
    cosine: float | None
    first_index: list[int] | None
    not_finite: int
    became_not_finite: int
    effective_rank: float | None
    effective_rank_note: str | None


class Touch(BaseModel):
    """One event that changed a parameter; `norm_before` and `norm_after` of a whole one, `before`
    and `after` of one element."""

    id: str
    seq: int
    kind: str
    recorded_at: str
    actor: str | None
    reason: str | None
    operation: str | None
    rule: str | None
    changed: int
    norm_before: float | str | None = None
    norm_after: float | str | None = None
    before: Any = None
    after: Any = None
    known: bool = Field(description="False where gc dropped what the values are made of.")
    live: bool = Field(description="Whether it is part of the live state.")
    undone_by: str | None


class BlameReply(_Exact):
    """Who touched a parameter, newest first; `next_seq` is where older touches begin."""

    object: Literal["blame"]
    model: str
    parameter: str
    dtype: str | None
    shape: list[int] | None
    index: list[int] | None
    touches: list[Touch]
    looked_at: int
    next_seq: int | None


class EachColumn(_Exact):
    """A state change, or the last of several that share a column."""

    id: str
    seq: int
    updates: int


class EachLayer(_Exact):
    """What every column did to one layer: null for nothing, "new" where nothing was before."""

    name: str
    relative_norm: list[float | Literal["new"] | None]


class DiffReply(BaseModel):
    """Two states compared, what moved farthest first; or with `each` layers by updates."""

    object: Literal["diff", "diff.each"]
    model: str
    before: DiffSide | str = Field(alias="from")
    after: DiffSide | str = Field(alias="to")
    tensors_changed: int | None = None
    tensors_unchanged: int | None = None
    layers: list[GroupDiff] | list[EachLayer]
    modules: list[GroupDiff] | None = None
    by_tensor: list[TensorDiff] | None = None
    columns: list[EachColumn] | None = None


class Trial(_Exact):
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


class TrialList(_Exact):
    """The trial that runs, and the last that ended, newest first."""

    object: Literal["list"]
    data: list[Trial]
    first_id: str | None
    last_id: str | None
    has_more: bool


class TrialData(_Exact):
    """How a trial was ended by hand."""

    trial_id: str
    event_id: str
    status: Literal["promoted", "aborted"]


class TrialReply(_Exact):
    """A trial that was promoted or aborted."""

    success: Literal[True]
    message: str
    data: TrialData


class Model(BaseModel):
    """The served model, or one of its adapters (then with `parent`)."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The served model and its adapters."""

    object: Literal["list"]
    data: list[Model]


class Verification(BaseModel):
    """The tensors served right now, hashed afresh, are the ledger's."""

    object: Literal["verification"]
    seq: int
    digest: str
    tensors: int
    ok: Literal[True]


class Consistency(_Exact):
    """A proof between two lengths of the log (RFC 6962, section 2.1.2); hashes are base64."""

    object: Literal["consistency_proof"]
    first: int
    second: int
    first_root: str
    second_root: str
    hashes: list[str]


class Predictions(_Exact):
    """What the model gave for a batch: nested lists."""

    predictions: Any


class Alive(_Exact):
    """The process answers."""

    status: Literal["ok"]


class Evidence(_Exact):
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


class WritesNow(_Exact):
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


class ReplayReply(BaseModel):
    """Which state it is; of a what-if also what it was made without, and what that changes."""

    object: Literal["replay", "what_if"]
    model: str
    seq: int
    version: str
    digest: str
    mode: Literal["mechanical", "causal"] | None = None
    without: list[str] | None = None
    same: bool | None = None
    derived: int | None = Field(None, description="Later updates that were worked out again.")
    not_asked: int | None = Field(None, description="Of those, judged by an evaluator before.")
    refused: list[str] | None = None
    changed: list[TensorDiff] | None = None


class BisectReply(BaseModel):
    """Where a search has come to: the state to judge next, or the event to blame."""

    object: Literal["bisection"]
    model: str
    done: bool
    steps: int | None
    suspects: int | None
    next: dict[str, Any] | None
    first_bad: dict[str, Any] | None
    suspected: list[dict[str, Any]]
    diff: dict[str, Any] | None
    undo: list[str]
    probability: float | None = None


class Key(_Exact):
    """An API key, without its secret."""

    name: str = Field(examples=["trainer"])
    scope: Literal["read", "write", "admin"]
    state: Literal["active", "expired", "revoked"]
    requests_per_minute: int | None
    created_by: str | None
    revoked_by: str | None
    created_at: str
    expires_at: str | None
    rotated_at: str | None
    revoked_at: str | None
    used_at: str | None = Field(description="To the minute.")


class KeyList(_Exact):
    """Every key that there is or was, oldest first."""

    object: Literal["list"]
    data: list[Key]


class IssuedKey(Key):
    """A key with its secret, which is told this once and kept nowhere."""

    key: str = Field(examples=["wl_8Jv0PZt1kq0Yx3cN5uT7wR9aB2dF4gH6jK8mP0sV1xZ"])


class KeyChange(_Exact):
    """One thing that was done to a key."""

    action: Literal["created", "rotated", "revoked"]
    recorded_at: str
    actor: str | None


class KeyChanges(_Exact):
    """What was done to one key, oldest first."""

    object: Literal["list"]
    data: list[KeyChange]
