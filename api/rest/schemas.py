"""Request bodies, validated strictly, and where replies get their shape."""

import codecs
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from weightledger.ledger.access.keys import MAX_NAME, Scope
from weightledger.ledger.access.records import MAX_LIFETIME_S, MAX_PER_MINUTE
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.history.redactions import MOST
from weightledger.ledger.json_text import RepeatedName, require_names_once
from weightledger.ledger.monitoring.metrics import PATTERN
from weightledger.ledger.writing.commands import MAX_DESCRIPTION

T = TypeVar("T")

MAX_TEXT = 500  # characters of an actor and a reason


class Body(BaseModel):
    """A body in which nothing is taken for something else, and nothing is unknown."""

    model_config = ConfigDict(strict=True, extra="forbid")


class FactorsBody(Body):
    """`a` [rows, rank] and `b` [rank, columns]."""

    a: list[list[float]]
    b: list[list[float]]


class IncrementalUpdateBody(Body):
    """POST /v1/models/incremental_update"""

    parameter_name: str
    update_data: Any = Field(
        None, description="A number, or (nested) lists of numbers of the parameter's shape or flat."
    )
    indices: list[int] | None = Field(
        None, description="Flat positions, in C order; update_data then has one value for each."
    )
    factors: FactorsBody | None = Field(
        None, description="Low-rank factors, in the place of update_data."
    )
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    update_type: str = "additive"
    metadata: dict[str, Any] | None = None


class EnhancedUpdateBody(Body):
    """POST /v1/models/enhanced_update: update_data or activities, or a reward."""

    parameter_name: str | None = Field(None, description="Not needed with a reward.")
    update_data: Any = Field(
        None, description="A change asked for, in the forms of incremental_update."
    )
    activities: dict[str, Any] | None = Field(
        None, description="By the rule's names: x, y, target, reward …; nested lists, [batch, …]."
    )
    rule: str | None = Field(None, description="A rule's id; else the selector chooses one.")
    rule_config: dict[str, Any] | None = None
    selector: Literal["feedback", "bandit"] | None = None
    learning_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    performance_context: dict[str, float] | None = Field(
        None, description="accuracy_change, a difference of fractions; latency_change in ms."
    )
    stream: str = "default"
    request_id: str | None = Field(None, description="With activities: their reward comes later.")
    reward: float | None = Field(None, description="The reward of the action sent before.")
    gated: bool = Field(False, description="Score, then learn; adopt only what is better.")
    batch_size: int | None = None
    metadata: dict[str, Any] | None = None


class VersionBody(Body):
    """POST /v1/models/create_version"""

    description: Annotated[str, Field(min_length=1, max_length=MAX_DESCRIPTION)]


class RollbackBody(Body):
    """POST /v1/models/rollback: a version id, or any other position."""

    version_id: Annotated[str, Field(min_length=1)]


class RolloutBody(Body):
    """POST /v1/fleet/rollouts"""

    to: Annotated[str, Field(min_length=1, description="A position, or 'head'.")]
    percent: Annotated[int, Field(ge=0, le=100, description="Of the replicas.")] = 10


class AdvanceBody(Body):
    """POST /v1/fleet/rollouts/{id}/advance"""

    percent: Annotated[int, Field(ge=0, le=100, description="Of the replicas.")]


class InvocationBody(Body):
    """POST /invocations: one batch, as nested lists; `dtype` is what the model takes."""

    inputs: Any
    dtype: str = "float32"


class SampleBody(Body):
    """One measurement from outside; what a value may be depends on the metric."""

    metric: Annotated[str, WithJsonSchema({"type": "string", "pattern": PATTERN})]
    value: float
    seq: int | None = Field(
        None,
        description="The state it was observed at, as X-Weights-Seq; the live one's if absent.",
    )
    time: str | float | None = Field(
        None, description="ISO 8601, or seconds since 1970; now if absent."
    )
    id: str | None = Field(
        None,
        description="1 to 255 characters: with an id a sample of a metric counts once, however"
        " often sent.",
    )
    replica: str | None = Field(
        None, description="The replica that served it, 1 to 200 characters; wants the seq."
    )


class MetricsBody(Body):
    """POST /v1/models/metrics: up to 1000 samples, all of them taken or none."""

    samples: list[SampleBody]


Why = Annotated[
    str, Field(min_length=1, max_length=MAX_TEXT, description="Recorded as the event's reason.")
]


class HoldBody(Body):
    """POST /v1/models/holds"""

    version_id: Annotated[str, Field(min_length=1)]
    reason: Why


class ReleaseBody(Body):
    """POST /v1/models/holds/{id}/release"""

    reason: Why


class RedactBody(Body):
    """POST /v1/models/redact: of some events, or of all that an actor caused."""

    events: Annotated[list[str], Field(max_length=MOST)] = Field(
        default_factory=list, description="Ids of events, or other names of one."
    )
    of: str | None = Field(None, description="Every event of this actor, beside those.")
    fields: Annotated[list[Literal["actor", "reason", "metadata"]], Field(min_length=1)] = Field(
        ["actor", "reason", "metadata"], description="What goes."
    )
    reason: Why
    dry_run: bool = Field(False, description="Say which events it would be, and change nothing.")


class KeyBody(Body):
    """POST /v1/keys"""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)] = Field(
        description="The actor of the events that the key causes; given once, to one key."
    )
    scope: Scope = Field("read", description="write includes read, admin everything.")
    expires_in_s: Annotated[float, Field(ge=1, le=MAX_LIFETIME_S)] | None = Field(
        None, description="For how many seconds it is taken; for ever if absent."
    )
    requests_per_minute: Annotated[int, Field(ge=1, le=MAX_PER_MINUTE)] | None = None


class KeyRotationBody(Body):
    """POST /v1/keys/rotate"""

    name: str
    overlap_s: Annotated[float, Field(ge=0, le=MAX_LIFETIME_S)] = Field(
        0.0, description="For how many more seconds the old secret is taken."
    )
    expires_in_s: Annotated[float, Field(ge=1, le=MAX_LIFETIME_S)] | None = Field(
        None, description="Of the new secret; as long as the old one's if absent."
    )


class KeyNameBody(Body):
    """POST /v1/keys/revoke"""

    name: str


UPDATE: TypeAdapter[IncrementalUpdateBody] = TypeAdapter(IncrementalUpdateBody)
ENHANCED: TypeAdapter[EnhancedUpdateBody] = TypeAdapter(EnhancedUpdateBody)
VERSION: TypeAdapter[VersionBody] = TypeAdapter(VersionBody)
ROLLBACK: TypeAdapter[RollbackBody] = TypeAdapter(RollbackBody)
ROLLOUT: TypeAdapter[RolloutBody] = TypeAdapter(RolloutBody)
ADVANCE: TypeAdapter[AdvanceBody] = TypeAdapter(AdvanceBody)
INVOCATION: TypeAdapter[InvocationBody] = TypeAdapter(InvocationBody)
METRICS: TypeAdapter[MetricsBody] = TypeAdapter(MetricsBody)
HOLD: TypeAdapter[HoldBody] = TypeAdapter(HoldBody)
RELEASE: TypeAdapter[ReleaseBody] = TypeAdapter(ReleaseBody)
REDACT: TypeAdapter[RedactBody] = TypeAdapter(RedactBody)
KEY: TypeAdapter[KeyBody] = TypeAdapter(KeyBody)
KEY_ROTATION: TypeAdapter[KeyRotationBody] = TypeAdapter(KeyRotationBody)
KEY_NAME: TypeAdapter[KeyNameBody] = TypeAdapter(KeyNameBody)
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])

_OTHER_UNICODE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def parse(adapter: TypeAdapter[T], body: bytes) -> T:
    """A validated body; InvalidRequest names the first wrong field and what was expected.

    A byte order mark before it, which Windows programs write, is skipped.
    """
    if not body:
        raise InvalidRequest("the body is empty, but this route expects a JSON object")
    if body.startswith(_OTHER_UNICODE):
        raise InvalidRequest("the body is not the JSON expected: it has to be in UTF-8")
    text = body.removeprefix(codecs.BOM_UTF8)
    try:
        require_names_once(text)
        return adapter.validate_json(text)
    except RepeatedName as error:
        raise InvalidRequest(f"the body is ambiguous: {error}", param=error.name) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or None
        where = f"{field}: " if field else "the body is not the JSON expected: "
        problem = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(where + problem + _got(first), param=field) from None


def _got(problem: Mapping[str, Any]) -> str:
    """What stood in the field, where that is short enough to repeat; "NaN is at most 1" is odd."""
    value = problem["input"]
    # Fields that are missing or too many have another's value as input, as has malformed JSON.
    tells = problem["type"] in ("missing", "extra_forbidden", "value_error", "json_invalid")
    if tells or not isinstance(value, str | int | float):
        return ""
    return f", got {json.dumps(value)[:80]}"


def json_object(text: str | None, param: str) -> dict[str, Any] | None:
    """A query parameter that holds a JSON object; InvalidRequest otherwise."""
    if text is None:
        return None
    try:
        require_names_once(text)
        return _OBJECT.validate_json(text)
    except RepeatedName as error:
        raise InvalidRequest(f"{param} is ambiguous: {error}", param=param) from None
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise InvalidRequest(f"{param} must be a JSON object: {reason}", param=param) from None


def update_reply(
    result: Mapping[str, Any], done: str, failed: str = "Failed to apply update"
) -> dict[str, Any]:
    """The reply about an update, from the manager's result: what was done, or why it was not."""
    if not result["success"]:
        return {"success": False, "message": f"{failed}: {result['reason']}", "data": dict(result)}
    data = {key: value for key, value in result.items() if key != "success"}
    return {"success": True, "message": done, "data": data}
