"""The settings: one table that makes flags, environment, file, help and documentation.

Each field is `WEIGHTLEDGER_<NAME>` in the environment, `name` in the file and `--name` on the
command line; `api.server.sources` says where a value comes from. A field's type, its default and
the words beside it are all that is written about it anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from weightledger.ledger.config import (
    DEFAULT_DATA_DIR,
    EVALUATOR_TIMEOUT_S,
    MAX_PREPARE_S,
    METRICS,
    DynamicUpdateConfig,
)
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.fleet.readiness import MAX_STALE_S

if TYPE_CHECKING:
    from weightledger import LoRAConfig

JSON_BODY_BYTES = 4 * 1024 * 1024
UPLOAD_BYTES = 64 * 1024**3

# Texts that are embedded or generated at a time, and those that wait for their turn.
INFERENCE_THREADS = 4
INFERENCE_QUEUE = 64

# Names in DynamicUpdateConfig, which are the specification's, of settings that people call so.
_SPECIFIED = {"backup_dir": "data_dir", "database_url": "database"}


def setting(
    default: Any, help: str, *, secret: bool = False, env: str | None = None, serve: bool = True
) -> Any:
    """A field of the settings.

    `help` is one sentence for --help and the documentation. A `secret` is never shown. `env` is the
    variable, where another project has named it; such a field has no flag. `serve` False: for the
    commands that talk to a server, not for the server.
    """
    return field(
        default=default, metadata={"help": help, "secret": secret, "env": env, "serve": serve}
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set. Raises InvalidRequest for values that cannot be."""

    model: str = setting("digits", "'digits' (built in), a Hugging Face folder, or module:factory.")
    served_model_name: str | None = setting(
        None, "The model's name in the ledger; by default from --model."
    )
    data_dir: Path = setting(Path(DEFAULT_DATA_DIR), "The data folder.")  # noqa: RUF009
    database: str | None = setting(
        None,
        "A database URL, sqlite:///PATH or postgresql://USER@HOST/NAME; by default SQLite in the"
        " data folder.",
    )
    blob_url: str | None = setting(
        None,
        "Where a new ledger keeps large payloads and snapshots: a folder or s3://BUCKET/PREFIX."
        " It is remembered. By default the database.",
    )
    host: str = setting("127.0.0.1", "Address to listen on; any but loopback needs an API key.")
    port: Annotated[int, Ge(0), Le(65535)] = setting(
        2242, "Port to listen on; 0 takes a free one and says which."
    )
    root_path: str = setting(
        "", "The path below which a proxy shows this server, such as /ledger: links lead there."
    )
    api_key: str | None = setting(
        None,
        "A key with every right that the server takes, beside those of `weightledger keys`, and"
        " the one that commands show a server.",
        secret=True,
    )
    signing_key: str | None = setting(
        None,
        "The key that checkpoints are signed with, 32 bytes in base64; by default the one in the"
        " data folder, which is made at first use.",
        secret=True,
        serve=False,
    )
    sign_every_s: Annotated[float, Ge(0)] = setting(
        0.5, "Least seconds between two signed checkpoints while events come; 0: only when asked."
    )
    witness: tuple[str, ...] = setting(
        (),
        "Witnesses that cosign checkpoints, each as URL#KEY; `weightledger witness serve` says its"
        " own at start.",
    )
    witness_quorum: Annotated[int, Ge(0)] | None = setting(
        None, "How many witnesses have to cosign; by default all."
    )
    url: str | None = setting(
        None,
        "The server that commands talk to; by default the one that serves the database.",
        serve=False,
    )
    jobs: Annotated[int, Ge(1)] = setting(
        1, "How many tasks of long work (verify, replay, diff …) are done at once.", serve=False
    )
    executor: Literal["local", "ray"] = setting(
        "local",
        "Where they are done: 'local' in processes here, 'ray' on a Ray cluster.",
        serve=False,
    )
    ray_address: str | None = setting(
        None,
        "The Ray cluster's HOST:PORT; by default one is started on this machine.",
        serve=False,
    )
    engine: Literal["embedded", "vllm", "aphrodite", "none"] = setting(
        "embedded",
        "'embedded' (in this process), 'vllm' or 'aphrodite' (driven by URL), or 'none' (a writer"
        " without a model: --model names one that the ledger has).",
    )
    engine_url: str | None = setting(None, "Base URL of the server that --engine drives.")
    engine_api_key: str | None = setting(
        None, "The key of the server that --engine drives.", secret=True
    )
    engine_timeout_s: Annotated[float, Gt(0)] = setting(
        60.0, "Seconds that the driven server may take for an answer."
    )
    engine_wait_s: Annotated[float, Ge(0)] = setting(
        600.0, "Seconds to wait at start for the server that --engine drives."
    )
    on_mismatch: Literal["refuse", "ledger", "record"] = setting(
        "refuse", "A model's unknown weights: 'ledger' loads the ledger's, 'record' records them."
    )
    max_versions: Annotated[int, Ge(1)] = setting(10, "Listed versions kept.")
    min_version_age_days: Annotated[float, Ge(0)] = setting(
        0.0, "Days for which a version stays listed, and its state restorable, however many."
    )
    checkpoint_interval: Annotated[int, Ge(1)] = setting(100, "Updates between automatic versions.")
    auto_rollback_threshold: Annotated[float, Ge(0)] = setting(
        0.1, "Relative degradation that refuses an update; 0: off."
    )
    auto_rollback_metrics: tuple[str, ...] = setting(
        ("accuracy",), f"What the threshold applies to, of {', '.join(METRICS)}."
    )
    enable_incremental_learning: bool = setting(True, "Whether updates are allowed.")
    enable_versioning: bool = setting(True, "Whether versions can be made and rolled back to.")
    snapshot_alpha: Annotated[float, Gt(0)] = setting(
        1.0, "A snapshot is written when deltas since the last reach this multiple of the model."
    )
    max_held_versions: Annotated[int, Ge(1)] = setting(
        16, "Past versions that readers may hold before updates wait."
    )
    held_versions_wait_s: Annotated[float, Ge(0)] = setting(
        5.0, "Seconds that updates wait for those readers before they are refused."
    )
    policy: str = setting(
        "specification",
        "When updates are undone: 'off', 'specification', 'safe', 'strict', or a file NAME.toml.",
    )
    webhook_url: str | None = setting(None, "Where events are told to, signed.")
    webhook_secret: str | None = setting(
        None, "What webhooks are signed with, whsec_ and base64.", secret=True
    )
    evaluator: tuple[str, ...] = setting(
        (),
        "What scores an update before it is visible: held-out:FILE, regression:FILE,"
        " similarity:FILE, perplexity:FILE, command:PROGRAM, a URL, or module:function; several as"
        " a JSON list.",
    )
    evaluator_timeout_s: Annotated[float, Gt(0)] = setting(
        EVALUATOR_TIMEOUT_S, "Seconds that an evaluator may take for one state."
    )
    evaluator_alpha: Annotated[float, Ge(0), Lt(1)] = setting(
        0.0,
        "Level at which a paired test of an evaluator's items refuses an update, whatever the"
        " threshold; 0: off.",
    )
    metrics_retention_days: Annotated[float, Ge(0), Le(36_500)] = setting(
        30.0, "Days that measurements are kept in the database; 0: none are written."
    )
    drift_metrics: tuple[str, ...] = setting(
        (), "Streams that are looked at for drift, such as items, accuracy or custom.NAME."
    )
    drift_detector: Literal["adwin", "page-hinkley"] = setting(
        "adwin", "Which of river's detectors looks at them."
    )
    keep_operands: Literal["small", "all", "none"] = setting(
        "small",
        "Whose operands are kept for a causal what-if: 'small' ones and those of rules, 'all',"
        " 'none'.",
    )
    inference_threads: Annotated[int, Ge(1)] = setting(
        INFERENCE_THREADS, "Texts embedded or generated at a time."
    )
    inference_queue: Annotated[int, Ge(0)] = setting(
        INFERENCE_QUEUE, "Texts that wait for their turn; the next is refused."
    )
    max_body_bytes: Annotated[int, Ge(1024)] = setting(JSON_BODY_BYTES, "Largest JSON body.")
    max_upload_bytes: Annotated[int, Ge(1024)] = setting(UPLOAD_BYTES, "Largest upload.")
    max_loras: Annotated[int, Ge(1)] = setting(8, "Adapters loaded at a time.")
    max_lora_rank: Annotated[int, Ge(1)] = setting(64, "Largest rank of an adapter.")
    otlp_endpoint: str | None = setting(
        None,
        "Base URL of an OpenTelemetry collector (OTLP over HTTP) that spans are sent to; wants the"
        " extra otel.",
        env="OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "The least that is worth a line of the log."
    )
    log_format: Literal["text", "json"] = setting("text", "Lines to read, or JSON objects.")
    allow_runtime_updating: bool = setting(
        True, "Whether the server takes writes; without, they are answered 403."
    )
    oidc_issuer: str | None = setting(
        None, "URL of an OpenID Connect issuer whose tokens are taken beside API keys."
    )
    oidc_audience: str | None = setting(
        None, "The audience that those tokens have to be made out for."
    )
    two_person_rule: bool = setting(
        False, "Whether what one API key writes waits until another one approves it."
    )
    prepare: Literal["none", "canary", "all"] = setting(
        "none",
        "Which replicas have to build an update's state before it is recorded: 'none', 'canary'"
        " (some of them, always the same) or 'all'; those started with --prepares.",
    )
    prepare_percent: Annotated[int, Ge(1), Le(100)] = setting(
        10, "Of the replicas, at least one, that are the canaries of --prepare canary."
    )
    prepare_timeout_s: Annotated[float, Gt(0), Le(MAX_PREPARE_S)] = setting(
        15.0, "Seconds that they have; an update that is not prepared by then is refused."
    )
    replica: str | None = setting(
        None, "The name of this replica in the fleet; by default the host's.", serve=False
    )
    wake: Literal["auto", "listen", "poll"] = setting(
        "auto",
        "How a replica hears of new events: 'listen' to what PostgreSQL tells, 'poll' (through any"
        " pooler), or 'auto', the first where it works.",
        serve=False,
    )
    max_stale_s: Annotated[float, Ge(0)] = setting(
        MAX_STALE_S,
        "Seconds for which a replica without the database is ready with the state it has.",
        serve=False,
    )
    max_lag_s: Annotated[float, Gt(0)] | None = setting(
        None,
        "Seconds that a replica may be behind the log and be ready; by default however many.",
        serve=False,
    )
    rolling: Annotated[int, Ge(1), Le(256)] | None = setting(
        None,
        "How many replicas may change their weights at once; by default all (PostgreSQL; the same"
        " for all).",
        serve=False,
    )
    prepares: bool = setting(
        False,
        "Whether a replica builds what the writer proposes before it is recorded (--prepare).",
        serve=False,
    )
    proxy_writes: bool = setting(
        False, "Whether a replica hands writes on to the writer instead of refusing.", serve=False
    )
    aphrodite_allows: bool = setting(
        True,
        "The same switch by its name in Aphrodite; writes need both.",
        env="APHRODITE_ALLOW_RUNTIME_LORA_UPDATING",
    )

    def __post_init__(self) -> None:
        for name in ("api_key", "engine_api_key"):
            value = getattr(self, name)
            if value is not None and not all("!" <= character <= "~" for character in value):
                raise InvalidRequest(
                    "an API key is sent in a header: it has visible ASCII characters only, no "
                    "spaces",
                    param=name,
                )
        self.update_config()

    @property
    def writes_enabled(self) -> bool:
        """Whether neither of the two switches is set to 0."""
        return self.allow_runtime_updating and self.aphrodite_allows

    def lora_config(self) -> "LoRAConfig":
        """The limits for adapters."""
        from weightledger import LoRAConfig  # imports torch

        return LoRAConfig(**self._share(LoRAConfig))

    def update_config(self) -> DynamicUpdateConfig:
        """The manager's share of the settings."""
        return DynamicUpdateConfig(**self._share(DynamicUpdateConfig))

    def _share(self, config: Callable[..., Any]) -> dict[str, Any]:
        """The values of a config's fields, each from the setting of that name."""
        names = [one.name for one in fields(config)]  # type: ignore[arg-type]
        return {name: getattr(self, _SPECIFIED.get(name, name)) for name in names}


def problem_of(error: InvalidRequest) -> str | None:
    """The setting that an error is about, by its own name."""
    return None if error.param is None else _SPECIFIED.get(error.param, error.param)
