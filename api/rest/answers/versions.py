"""Versions, and where the model stands."""

from typing import Literal

from pydantic import BaseModel, Field

from weightledger.api.rest.answers import Exact, Metrics


class VersionData(Exact):
    """A version by its id."""

    version_id: str = Field(examples=["v1_1795397018"])


class VersionReply(Exact):
    """A version that was created or retired."""

    success: Literal[True]
    message: str
    data: VersionData


class PinData(Exact):
    """Whether a version is kept for ever."""

    version_id: str
    pinned: bool


class PinReply(Exact):
    """A version that was pinned or unpinned."""

    success: Literal[True]
    message: str
    data: PinData


class Version(Exact):
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


class VersionList(Exact):
    """Listed versions, newest first."""

    versions: list[Version]
    total_count: int


class StatusConfig(Exact):
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
