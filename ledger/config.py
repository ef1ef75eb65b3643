"""Settings of the Python face, under the specification's names."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from weightledger.ledger.errors import InvalidRequest

DEFAULT_DATA_DIR = "weightledger-data"
DATABASE_FILE = "ledger.db"

MAX_HELD_VERSIONS = 16
HELD_VERSIONS_WAIT_S = 5.0

EVALUATOR_TIMEOUT_S = 300.0

METRICS = ("accuracy", "latency_ms", "throughput", "memory_usage_mb")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model a manager looks after: `model` is its name in the ledger."""

    model: str


MAX_PREPARE_S = 600.0
"""The longest that a write may wait for replicas to prepare it: other writers wait meanwhile."""


@dataclass(frozen=True, slots=True)
class DynamicUpdateConfig:
    """How a DynamicModelManager behaves.

    max_versions: listed versions kept; older names are retired, never the active one's.
    checkpoint_interval: applied updates between automatic versions, each with a snapshot.
    auto_rollback_threshold: relative degradation that refuses an update; 0 turns it off.
    enable_incremental_learning, enable_versioning: False refuses those operations.
    backup_dir: the data folder, created at first use.
    database_url: where events go; None is SQLite in the data folder.
    blob_url: where a new ledger keeps large payloads and snapshots, a folder or bucket as for
        `Ledger.open`; None is the database.
    min_version_age_days: versions younger than this stay listed, and restorable, however many.
    two_person_rule: what one person writes waits until another approves it.
    prepare: which replicas have to build an update's state before it is recorded: "none", "canary"
        (`prepare_percent` of them, at least one) or "all"; see docs/fleet.md.
    prepare_timeout_s: how long they have; what is not prepared by then is refused.
    auto_rollback_metrics: which metrics the threshold applies to.
    snapshot_alpha: a snapshot is written when the deltas since the last one reach this multiple
        of the model's bytes.
    max_held_versions: past versions that readers may hold in memory. At this many, updates wait
        for `held_versions_wait_s` seconds and then raise Unavailable; readers never wait, and
        neither does a rollback. In-place engines have one version and know no such limit.
    policy: when updates are undone: off, specification, safe, strict, or a policy file
        (NAME.toml); see docs/monitoring.md.
    evaluator_timeout_s: how long an evaluator may take; a candidate that it does not score in time
        is refused.
    evaluator_alpha: above 0, a candidate is refused as well when an exact paired test says at this
        level that single items of the evaluator got worse.
    metrics_retention_days: how long measurements are kept in the database; 0 writes none.
    drift_metrics: streams that are looked at for drift, by metric; none by default.
    drift_detector: what looks at them: adwin or page-hinkley.
    keep_operands: which updates keep what they were worked out from, so that a causal what-if can
        work them out again: "small" ones (64 KiB) and those of learning rules, "all", or "none".
    """

    max_versions: int = 10
    checkpoint_interval: int = 100
    auto_rollback_threshold: float = 0.1
    enable_incremental_learning: bool = True
    enable_versioning: bool = True
    backup_dir: str | Path = DEFAULT_DATA_DIR
    database_url: str | None = None
    blob_url: str | None = None
    auto_rollback_metrics: Sequence[str] = ("accuracy",)
    snapshot_alpha: float = 1.0
    max_held_versions: int = MAX_HELD_VERSIONS
    held_versions_wait_s: float = HELD_VERSIONS_WAIT_S
    evaluator_timeout_s: float = EVALUATOR_TIMEOUT_S
    evaluator_alpha: float = 0.0
    two_person_rule: bool = False
    prepare: Literal["none", "canary", "all"] = "none"
    prepare_percent: int = 10
    prepare_timeout_s: float = 15.0
    min_version_age_days: float = 0.0
    metrics_retention_days: float = 30.0
    keep_operands: Literal["small", "all", "none"] = "small"
    policy: str = "specification"
    drift_metrics: Sequence[str] = ()
    drift_detector: str = "adwin"

    def __post_init__(self) -> None:
        for one in fields(self):
            _check_type(one.name, getattr(self, one.name), one.default)
        for name in ("max_versions", "checkpoint_interval", "max_held_versions"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1", param=name)
        if not self.auto_rollback_threshold >= 0:
            raise InvalidRequest(
                "auto_rollback_threshold must be 0 (off) or more", param="auto_rollback_threshold"
            )
        if not self.snapshot_alpha > 0:
            raise InvalidRequest("snapshot_alpha must be above 0", param="snapshot_alpha")
        if not self.min_version_age_days >= 0:
            raise InvalidRequest(
                "min_version_age_days must be 0 or more", param="min_version_age_days"
            )
        if not self.held_versions_wait_s >= 0:
            raise InvalidRequest(
                "held_versions_wait_s must be 0 or more", param="held_versions_wait_s"
            )
        if not self.evaluator_timeout_s > 0:
            raise InvalidRequest("evaluator_timeout_s must be above 0", param="evaluator_timeout_s")
        if not 0 <= self.evaluator_alpha < 1:
            raise InvalidRequest(
                "evaluator_alpha must be 0 (off) or more, and below 1", param="evaluator_alpha"
            )
        if not 0 <= self.metrics_retention_days <= 36_500:
            raise InvalidRequest(
                "metrics_retention_days must be 0 (none are kept) to 36500",
                param="metrics_retention_days",
            )
        if self.keep_operands not in ("small", "all", "none"):
            raise InvalidRequest(
                f"keep_operands must be small, all or none, got {self.keep_operands!r}",
                param="keep_operands",
            )
        unknown = set(self.auto_rollback_metrics) - set(METRICS)
        if unknown:
            raise InvalidRequest(
                f"auto_rollback_metrics may be {', '.join(METRICS)}; got {', '.join(unknown)}",
                param="auto_rollback_metrics",
            )

    @property
    def url(self) -> str:
        """The database that is used."""
        return self.database_url or sqlite_url(self.file)

    @property
    def file(self) -> Path:
        """The SQLite file of the data folder."""
        return Path(self.backup_dir) / DATABASE_FILE


def _check_type(name: str, value: Any, default: Any) -> None:
    """Raise InvalidRequest unless `value` is of the kind that a field with this default takes.

    Else "no" would switch on what it was to switch off.
    """
    if name == "backup_dir":
        wanted, is_it = "a path", isinstance(value, str | Path)
    elif isinstance(default, bool):
        wanted, is_it = "True or False", isinstance(value, bool)
    elif isinstance(default, int):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        wanted, is_it = "a whole number", whole
    elif isinstance(default, float):
        wanted, is_it = "a number", isinstance(value, Real) and not isinstance(value, bool)
    elif isinstance(default, tuple):
        listed = isinstance(value, Sequence | Set) and not isinstance(value, str)
        wanted, is_it = "a list of names", listed and all(isinstance(one, str) for one in value)
    else:
        wanted, is_it = "a text", isinstance(value, str) or (default is None and value is None)
    if not is_it:
        raise InvalidRequest(f"{name} must be {wanted}, got {value!r}", param=name)


def sqlite_url(path: str | Path) -> str:
    """The database URL of a file, whatever characters its path has."""
    try:
        return f"sqlite:///{quote(str(path))}"
    except UnicodeEncodeError:
        raise InvalidRequest(f"the path {str(path)!r} is not Unicode", param="data_dir") from None
