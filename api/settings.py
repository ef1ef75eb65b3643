"""Server settings, read once at the edge: flags win over environment, environment over defaults."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ledger import DynamicUpdateConfig

JSON_BODY_BYTES = 4 * 1024 * 1024


class Settings(BaseSettings):
    """Everything `weightledger serve` can be told; each field is WEIGHTLEDGER_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="WEIGHTLEDGER_", env_nested_delimiter="__")

    model: str = "digits"
    data_dir: Path = Path("weightledger-data")
    database: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 2242
    api_key: str | None = None
    engine: Literal["embedded", "vllm", "aphrodite"] = "embedded"
    engine_url: str | None = None
    engine_api_key: str | None = None
    engine_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    on_mismatch: Literal["refuse", "ledger"] = "refuse"
    max_versions: Annotated[int, Field(ge=1)] = 10
    checkpoint_interval: Annotated[int, Field(ge=1)] = 100
    auto_rollback_threshold: Annotated[float, Field(ge=0)] = 0.1
    auto_rollback_metrics: Annotated[tuple[str, ...], NoDecode] = ("accuracy",)
    enable_incremental_learning: bool = True
    enable_versioning: bool = True
    max_body_bytes: Annotated[int, Field(ge=1024)] = JSON_BODY_BYTES
    allow_runtime_updating: bool = True
    aphrodite_allows: Annotated[
        bool, Field(validation_alias="APHRODITE_ALLOW_RUNTIME_LORA_UPDATING")
    ] = True

    @field_validator("api_key")
    @classmethod
    def _an_empty_key_is_none(cls, value: str | None) -> str | None:
        return (value or "").strip() or None

    @property
    def writes_enabled(self) -> bool:
        """Whether neither of the two switches is set to 0."""
        return self.allow_runtime_updating and self.aphrodite_allows

    def update_config(self) -> DynamicUpdateConfig:
        """The manager's share of the settings."""
        return DynamicUpdateConfig(
            max_versions=self.max_versions,
            checkpoint_interval=self.checkpoint_interval,
            auto_rollback_threshold=self.auto_rollback_threshold,
            enable_incremental_learning=self.enable_incremental_learning,
            enable_versioning=self.enable_versioning,
            backup_dir=self.data_dir,
            database_url=self.database,
            auto_rollback_metrics=self.auto_rollback_metrics,
        )
