"""What is answered to writes: updates, learning, rollbacks; and to what waits for approval."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from weightledger.api.rest.answers import Exact, Metrics


class UpdateData(BaseModel):
    """An update that was applied has its running count; one that was refused has the reason."""

    update_id: str = Field(examples=["update_1_1795397017"])
    update_count: int | None = None
    success: bool | None = Field(None, description="False when it was refused.")
    reason: str | None = None
    pre_metrics: Metrics | None = Field(None, description="Of the state before.")
    post_metrics: Metrics | None = Field(None, description="Of the candidate.")


class UpdateReply(Exact):
    """An update: `success` false when a guard or evaluator refused it, which is recorded too."""

    success: bool
    message: str
    data: UpdateData


class LearningReply(Exact):
    """An update by a learning rule, or an action that waits for its reward."""

    success: bool
    message: str
    data: dict[str, Any]


class RollbackData(Exact):
    """Where a rollback led to."""

    rolled_back_to: str
    timestamp: float = Field(description="When that state came about, seconds since 1970.")
    description: str


class RollbackReply(Exact):
    """A rollback."""

    success: Literal[True]
    message: str
    data: RollbackData


class Approval(Exact):
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


class ApprovalList(Exact):
    """Writes that wait or waited, newest first."""

    object: Literal["list"]
    data: list[Approval]


class WaitingData(Exact):
    """What to ask for, or to approve."""

    approval_id: str = Field(examples=["approval_3"])


class Waiting(Exact):
    """Under the two-person rule: recorded as asked for, not carried out yet."""

    success: Literal[False]
    message: str
    data: WaitingData
