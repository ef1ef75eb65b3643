"""Query parameters, validated by typed models: unknown names and wrong values are errors.

A route without any takes none: `?dry_run=true` at one that knows no dry run must not be the real
thing.
"""

from typing import Annotated, Any, Literal, get_origin

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from weightledger.ledger.debug.blame import INDEX
from weightledger.ledger.debug.each import MAX_COLUMNS
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import KINDS
from weightledger.ledger.history.positions import parse_time
from weightledger.ledger.monitoring.metrics import METRICS, PATTERN, is_known
from weightledger.ledger.monitoring.reading import By
from weightledger.ledger.monitoring.samples import Source

MAX_LIMIT = 100
DEFAULT_LIMIT = 20

# A chart has more points than a list has lines.
MAX_MEASUREMENTS = 1000
DEFAULT_MEASUREMENTS = 100

_MOST_SEQ = 1 << 40


def _kind(value: str) -> str:
    if value not in KINDS:
        raise ValueError(f"must be one of {', '.join(KINDS)}")
    return value


def _metric(value: str) -> str:
    if not is_known(value):
        raise ValueError(f"must be one of {', '.join(METRICS)}, or custom.NAME")
    return value


def _moment(value: str) -> str:
    if parse_time(value) is None:
        raise ValueError("must be an ISO 8601 time such as 2026-11-22T10:00:00Z")
    return value


Kind = Annotated[
    str, AfterValidator(_kind), WithJsonSchema({"type": "string", "enum": list(KINDS)})
]
Moment = Annotated[
    str,
    AfterValidator(_moment),
    WithJsonSchema({"type": "string", "format": "date-time"}),
    Field(examples=["2026-11-22T10:00:00Z"], description="An ISO 8601 time; UTC without a zone."),
]
MetricName = Annotated[
    str,
    AfterValidator(_metric),
    WithJsonSchema({"type": "string", "pattern": PATTERN, "examples": list(METRICS)[:4]}),
]
Seq = Annotated[int, Field(ge=0, le=_MOST_SEQ)]


class Query(BaseModel):
    """The base of every query: a name that the route does not have is an error."""

    model_config = ConfigDict(extra="forbid")


class PageQuery(Query):
    """A page of a list."""

    after: str | None = Field(None, description="The item that the page begins behind.")
    before: str | None = Field(None, description="The item that the page ends before.")
    limit: int = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Items on the page.")


METADATA = "metadata."
METADATA_FILTER = {
    "name": f"{METADATA}KEY",
    "in": "query",
    "required": False,
    "description": "Only events whose metadata have this value under KEY, as in"
    " metadata.ticket=OPS-17; one for each key. A value that is no string is compared as JSON.",
    "schema": {"type": "string"},
    "example": "OPS-17",
}


class Updates(PageQuery):
    """Which events are listed; all filters have to pass."""

    model_config = ConfigDict(extra="allow")  # metadata.KEY; `refuse_unknown` refuses the rest

    parameter: str | None = Field(None, description="A name or glob, such as layers.3.*")
    kind: list[Kind] = Field(default_factory=list, description="One or several kinds of events.")
    actor: list[str] = Field(default_factory=list, description="One or several actors.")
    outcome: Literal["applied", "rejected"] | None = Field(None, description="Of updates.")
    text: str | None = Field(
        None,
        min_length=1,
        max_length=500,
        description="Words of the reason or the actor, all of them, in any order and case.",
        examples=["nightly run"],
    )
    min_norm: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="The least norm of an update's difference."
    )
    since: Moment | None = None
    until: Moment | None = None
    min_seq: Seq | None = None
    max_seq: Seq | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """What metadata have to say, by key."""
        return {
            name.removeprefix(METADATA): value for name, value in (self.model_extra or {}).items()
        }


class ServedQuery(Query):
    """Which replica, and when."""

    replica: str = Field(description="The replica's name.")
    at: Moment


class ApprovalsQuery(Query):
    """Which requests for approval are listed."""

    state: Literal["pending", "approved", "carried out", "rejected", "lapsed"] | None = None
    limit: int = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="The newest so many.")


class KeyHistoryQuery(Query):
    """Whose changes are listed."""

    name: str = Field(description="The name of a key.")


class HoldsQuery(Query):
    """Which legal holds are listed."""

    standing: bool | None = Field(None, description="Only those that stand, or were released.")


class ActivityQuery(Query):
    """Which events are counted."""

    kind: list[Kind] = Field(default_factory=list, description="One or several kinds of events.")
    actor: list[str] = Field(default_factory=list, description="One or several actors.")
    since: Moment | None = None
    until: Moment | None = None


class DensityQuery(Query):
    """Over which time events are counted."""

    since: Moment | None = None
    until: Moment | None = None


class BlameQuery(Query):
    """Whose touches are listed."""

    parameter: str = Field(description="The name of a parameter, or adapter/…, rule/….")
    index: str | None = Field(
        None,
        max_length=200,
        pattern=INDEX.pattern,
        description="One element: a number for each dimension, or one that counts through.",
    )
    limit: int = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Touches that are looked at.")
    max_seq: Seq | None = Field(None, description="The last event that is looked at.")
    form: Literal["json", "csv", "svg"] = Field("json", alias="format")


class WatchQuery(Query):
    """Where a stream of events begins."""

    after: Seq | None = Field(
        None, description="The seq that the stream begins behind; the last one there is by default."
    )


class DiffQuery(Query):
    """Which two states are compared, and how that is told."""

    before: str = Field(
        alias="from", description="The earlier position: a version, an update, seq:N, head~N …"
    )
    after: str = Field("head", alias="to", description="The later position.")
    each: bool = Field(
        False, description="What each update on the way did, by layer, instead of the whole."
    )
    columns: int = Field(60, ge=1, le=MAX_COLUMNS, description="With each: columns, at most.")
    ranks: Literal["auto", "all", "none"] = Field(
        "auto", description="Effective ranks: of small changes, of all, or of none."
    )
    form: Literal["json", "csv", "svg"] = Field("json", alias="format")


class MeasurementsQuery(Query):
    """Which measurements are read, and how they are put together; all filters have to pass."""

    metric: list[MetricName] = Field(default_factory=list, description="One or several metrics.")
    source: list[Source] = Field(default_factory=list, description="Who measured.")
    replica: list[str] = Field(default_factory=list, description="Replicas that served.")
    by: By = Field(
        "time",
        description="One item for each span of time and state, for each state, or for all of it.",
    )
    since: Moment | None = None
    until: Moment | None = None
    min_seq: Seq | None = None
    max_seq: Seq | None = None
    after: str | None = Field(None, description="The item that the page begins behind.")
    before: str | None = Field(None, description="The item that the page ends before.")
    limit: int = Field(
        DEFAULT_MEASUREMENTS, ge=1, le=MAX_MEASUREMENTS, description="Items on the page."
    )


class BatchQuery(Query):
    """How every update of a batch is applied."""

    update_type: Literal["additive", "multiplicative", "replace"] = "additive"
    learning_rate: float = Field(0.01, ge=0, le=1)
    metadata: Annotated[
        str | None,
        WithJsonSchema({"type": "string", "contentMediaType": "application/json"}),
        Field(description="A JSON object.", examples=['{"run": 7}']),
    ] = None


class ProofQuery(Query):
    """Which reply the proof is the receipt of."""

    digest: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="The X-Weights-Digest of a reply: 404 unless the state after the event has it.",
    )


class ConsistencyQuery(Query):
    """Two lengths of the log."""

    first: Seq = Field(description="A number of events.", examples=[1])
    second: Seq | None = Field(None, description="A larger one; by default all there are.")


async def refuse_unknown(request: Request) -> None:
    """`check_known`; a coroutine, since a plain function would be called on a thread each time."""
    check_known(request)


def check_known(request: Request) -> None:
    """InvalidRequest for a query parameter that the route does not have, or one given twice."""
    if not request.scope["query_string"]:
        return
    known = parameters(request.scope.get("route"))
    for name in request.query_params:
        if name not in known and not (METADATA in known and name.startswith(METADATA)):
            raise InvalidRequest(_unknown(name, known), param=name)
        times = len(request.query_params.getlist(name))
        if times > 1 and get_origin(known.get(name)) is not list:
            raise InvalidRequest(f"{name}: expected once, got {times} times", param=name)


def parameters(route: Any) -> dict[str, Any]:
    """The query parameters of a route with their types; a model stands for its fields.

    METADATA stands for all names that begin so.
    """
    declared = []
    if isinstance(route, APIRoute):
        declared = [*route.dependant.query_params]
        for inner in route.dependant.dependencies:
            declared += inner.query_params
    known: dict[str, Any] = {}
    for one in declared:
        model: Any = one.field_info.annotation
        if hasattr(model, "model_fields"):
            known |= {
                field.alias or name: field.annotation for name, field in model.model_fields.items()
            }
            if model.model_config.get("extra") == "allow":
                known[METADATA] = str
        else:
            known[one.alias] = model
    return known


def first_problem(errors: Any) -> tuple[str, str | None]:
    """The message about the first wrong parameter of a request, and the parameter's name."""
    first = errors[0]
    name = next((str(part) for part in first["loc"][1:]), None)
    problem = first["msg"].removeprefix("Value error, ")
    return f"{name}: {problem}, got {str(first.get('input'))[:80]!r}", name


def _unknown(name: str, known: dict[str, Any]) -> str:
    if not known:
        return f"unknown query parameter {name!r}; this route takes none"
    names = ", ".join(f"{one}KEY" if one == METADATA else one for one in sorted(known))
    return f"unknown query parameter {name!r}; expected some of {names}"
