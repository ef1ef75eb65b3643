"""Server settings, read once at the edge: flags win over environment, environment over defaults."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from weightledger import DynamicUpdateConfig, LoRAConfig

JSON_BODY_BYTES = 4 * 1024 * 1024
UPLOAD_BYTES = 64 * 1024**3

# Texts that are embedded or generated at a time, and those that wait for their turn.
INFERENCE_THREADS = 4
INFERENCE_QUEUE = 64


class Settings(BaseSettings):
    """Everything `weightledger serve` can be told; each field is WEIGHTLEDGER_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="WEIGHTLEDGER_", env_nested_delimiter="__")

    model: str = "digits"
    served_model_name: str | None = None
    data_dir: Path = Path("weightledger-data")
    database: str | None = None
    blob_url: str | None = None
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
    max_held_versions: Annotated[int, Field(ge=1)] = 16
    held_versions_wait_s: Annotated[float, Field(ge=0)] = 5.0
    inference_threads: Annotated[int, Field(ge=1)] = INFERENCE_THREADS
    inference_queue: Annotated[int, Field(ge=0)] = INFERENCE_QUEUE
    max_body_bytes: Annotated[int, Field(ge=1024)] = JSON_BODY_BYTES
    max_upload_bytes: Annotated[int, Field(ge=1024)] = UPLOAD_BYTES
    max_loras: Annotated[int, Field(ge=1)] = 8
    max_lora_rank: Annotated[int, Field(ge=1)] = 64
    allow_runtime_updating: bool = True
    aphrodite_allows: Annotated[
        bool, Field(validation_alias="APHRODITE_ALLOW_RUNTIME_LORA_UPDATING")
    ] = True

    @field_validator("api_key", "blob_url")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return (value or "").strip() or None

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, value: str | None) -> str | None:
        if value is not None and not all("!" <= character <= "~" for character in value):
            raise ValueError(
                "an API key is sent in a header: it has visible ASCII characters only, no spaces"
            )
        return value

    @property
    def writes_enabled(self) -> bool:
        """Whether neither of the two switches is set to 0."""
        return self.allow_runtime_updating and self.aphrodite_allows

    def lora_config(self) -> LoRAConfig:
        """The limits for adapters."""
        return LoRAConfig(max_loras=self.max_loras, max_lora_rank=self.max_lora_rank)

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
            blob_url=self.blob_url,
            auto_rollback_metrics=self.auto_rollback_metrics,
            max_held_versions=self.max_held_versions,
            held_versions_wait_s=self.held_versions_wait_s,
        )
