"""Answers to questions about the history: diff, blame, replay, bisect."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from weightledger.api.rest.answers import Exact


class DiffSide(Exact):
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


class BlameReply(Exact):
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


class EachColumn(Exact):
    """A state change, or the last of several that share a column."""

    id: str
    seq: int
    updates: int


class EachLayer(Exact):
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
    """Where a search has come to: the states to judge next, or the event to blame."""

    object: Literal["bisection"]
    model: str
    done: bool
    steps: int | None
    suspects: int | None
    next: dict[str, Any] | None
    probes: list[int] = Field(description="Seqs of the states to judge next, ends included.")
    first_bad: dict[str, Any] | None
    suspected: list[dict[str, Any]]
    diff: dict[str, Any] | None
    undo: list[str]
    probability: float | None = None
    judging_s: float | None = None
    path_bytes: int | None = None
    search: dict[str, Any] = Field(description="All of it: send it back to go on.")


class ReproductionReply(BaseModel):
    """Whether an old reply and the one of now say the same, and where they differ first."""

    object: Literal["reproduction"]
    verdict: Literal["same", "different"]
    model: str
    route: str
    seq: int
    digest: str
    values: int
    differing: int
    first_difference: dict[str, Any] | None
    largest_difference: float | None
    largest_at: str | None
    now: dict[str, Any]
    promised_when: list[str]
    not_promised: list[str]
