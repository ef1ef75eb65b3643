"""Request bodies of questions about the history: replay, what-ifs, bisect, reproduce."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from weightledger.api.rest.schemas import Body
from weightledger.ledger.debug.bisect.bisection import MOST_EVALUATIONS

Position = Annotated[str, Field(min_length=1, max_length=200, description="A position.")]
Verdict = Literal["good", "bad", "skip"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seq = Annotated[int, Field(ge=0, lt=1 << 40)]


class AdoptBody(Body):
    """POST /v1/models/adopt_what_if"""

    to: Position = "head"
    without: Annotated[list[str], Field(min_length=1, max_length=1000)] = Field(
        description="The events to leave out: positions, actor:NAME or rule:ID."
    )
    mode: Literal["mechanical", "causal"] = "mechanical"
    only_after: str | None = Field(None, description="Events up to this position stay.")


class ReplayBody(Body):
    """POST /v1/models/replay"""

    to: Position = "head"
    without: Annotated[list[str], Field(max_length=1000)] = Field(
        default_factory=list,
        description="The events to leave out: positions, actor:NAME or rule:ID.",
    )
    mode: Literal["mechanical", "causal"] = "mechanical"
    only_after: str | None = Field(None, description="Events up to this position stay.")
    format: Literal["json", "safetensors"] = "json"


class VerdictBody(Body):
    """One verdict."""

    position: Position | None = Field(
        None, description="The state that it is about; by default the one to be judged next."
    )
    verdict: Verdict


class EndBody(Body):
    """One end of the way that is searched."""

    # Both ends would be one name for two schemas to a generator of clients.
    model_config = ConfigDict(json_schema_extra=lambda schema: schema.pop("title", None))

    text: str
    seq: Seq


class JudgedBody(Body):
    """One state that was judged."""

    seq: Seq
    verdict: Verdict
    by: Literal["user", "judge"] = "user"
    score: Finite | Literal["inf", "-inf"] | None = None
    detail: str | None = None
    duration_s: Finite | None = None


class RulesBody(Body):
    """How verdicts are taken."""

    noisy: bool = False
    rate: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    metric: str | None = None
    drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    lower_is_better: bool = False


class SearchBody(Body):
    """A search as a reply gave it: to go on with it, send it back as it is."""

    format: Literal[1]
    model: str
    origin: str
    good: EndBody | None
    bad: EndBody | None
    rules: RulesBody
    judged: Annotated[list[JudgedBody], Field(max_length=10_000)]


class BisectBody(Body):
    """POST /v1/models/bisect"""

    search: SearchBody | None = Field(
        None, description="The `search` of an earlier reply; then good, bad and rules are its own."
    )
    good: Position | None = None
    bad: Position | None = "head"
    verdicts: Annotated[list[VerdictBody], Field(max_length=10_000)] = Field(default_factory=list)
    noisy: Annotated[float, Field(gt=0, lt=0.5)] | None = Field(
        None, description="How often the judge errs."
    )
    learn_rate: bool = Field(False, description="The judge errs, as often as it turns out.")
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    metric: str | None = Field(
        None, description="A state is bad whose metric is worse than the good state's …"
    )
    drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="… by more than this."
    )
    lower_is_better: bool = False
    judge: Annotated[int, Field(ge=0, le=MOST_EVALUATIONS)] = Field(
        0,
        description="How many states the server's own evaluator judges before the reply; for half "
        "a minute at most.",
    )
    probes: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="How many states the reply names to be judged at a time."
    )
    format: Literal["json", "svg"] = "json"


REPLAY: TypeAdapter[ReplayBody] = TypeAdapter(ReplayBody)
ADOPT: TypeAdapter[AdoptBody] = TypeAdapter(AdoptBody)
BISECT: TypeAdapter[BisectBody] = TypeAdapter(BisectBody)


class ReproduceBody(Body):
    """POST /v1/models/reproduce"""

    route: Literal["/invocations", "/v1/embeddings", "/v1/completions", "/v1/chat/completions"]
    request: dict[str, Any] = Field(description="The body of then.")
    reply: dict[str, Any] = Field(description="The body that was answered.")
    seq: Seq | None = Field(None, description="The reply's `X-Weights-Seq`.")
    digest: str | None = Field(None, description="The reply's `X-Weights-Digest`.")


REPRODUCE: TypeAdapter[ReproduceBody] = TypeAdapter(ReproduceBody)
