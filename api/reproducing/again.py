"""A request answered on the state that an old reply names, and both replies compared."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from weightledger import Engine
from weightledger.api.reproducing.asked import ROUTES, answered, doubts, facts_of
from weightledger.api.reproducing.rebuilt import RebuiltView
from weightledger.api.reproducing.replies import comparable, read, require_same_state
from weightledger.ledger.debug.agreement import Agreement, agreement
from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.history.reader import History

PROMISED_WHEN = (
    "the engine that computed the reply was of the same kind, in this project's own process",
    "the request is the whole one: its rows or texts went through the model as one batch",
    "weights and inputs have the same dtypes, on the same kind of device",
    "torch has the same version and number of threads, on the same processor instructions",
    "text was generated with a seed, or with temperature 0",
)
"""When equality to the bit is promised. A reply does not say what it was computed on, so whoever
asks has to know."""

_DIGEST_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A reply computed anew on the state at `seq`, and how it compares with the old one.

    `now` says what it was computed with; `not_promised` why equality was not to be expected, as far
    as the request tells.
    """

    model: str
    route: str
    seq: int
    digest: str
    reply: Mapping[str, Any]
    agreement: Agreement
    now: Mapping[str, Any]
    not_promised: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether both replies say the same, bit for bit."""
        return self.agreement.same

    def to_json(self) -> dict[str, Any]:
        """All but the reply."""
        compared = self.agreement
        return {
            "object": "reproduction",
            "verdict": "same" if self.same else "different",
            "model": self.model,
            "route": self.route,
            "seq": self.seq,
            "digest": self.digest,
            "values": compared.compared,
            "differing": compared.differing,
            "first_difference": None
            if compared.first is None
            else {name: _told(value) for name, value in asdict(compared.first).items()},
            "largest_difference": _told(compared.largest),
            "largest_at": compared.largest_at,
            "now": dict(self.now),
            "promised_when": list(PROMISED_WHEN),
            "not_promised": list(self.not_promised),
        }


def _told(value: Any) -> Any:
    """A value as JSON has it: what is no number, as in a vector that came in base64, is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reproduce(
    history: History,
    engine: Engine,
    route: str,
    request: bytes | Mapping[str, Any],
    reply: bytes | Mapping[str, Any],
    *,
    seq: int | None = None,
    digest: str | None = None,
) -> Reproduction:
    """Answer a request on the state that an old reply names, and compare both replies.

    `engine` holds the model of the log, with whatever weights; it must not serve, and shows that
    state afterwards. `route` is one of `ROUTES`, `seq` and `digest` are the reply's `X-Weights-Seq`
    and `X-Weights-Digest`, of which one will do; `request` and `reply` are JSON bodies.

    Raises NotFound or Pruned where there is no such state, CorruptLedger, and InvalidRequest for a
    digest that is not that state's, another model, a request that is refused, or a reply that is
    none.
    """
    if route not in ROUTES:
        raise InvalidRequest(f"route must be one of {', '.join(ROUTES)}", param="route")
    asked = request if isinstance(request, bytes) else json.dumps(request).encode()
    facts = facts_of(asked)
    if facts.get("stream"):
        raise InvalidRequest(
            "a streamed reply is compared whole: leave out stream from the request, and give the "
            "reply as it is without it",
            param="request",
        )
    expected = read(reply)
    state, shown_seq = _state(history, seq, digest)
    require_same_state(expected, state)
    model = RebuiltView(history.model, engine, state, shown_seq)
    got = answered(model, route, asked)
    return Reproduction(
        history.model,
        route,
        shown_seq,
        state.digest.value.hex(),
        got,
        agreement(comparable(expected, route), comparable(got, route)),
        _now(state, engine),
        doubts(route, facts),
    )


def _state(history: History, seq: int | None, digest: str | None) -> tuple[ReplayedState, int]:
    """The state that both name, and the seq that its reply has."""
    if digest is not None:
        digest = digest.lower()
        if len(digest) != _DIGEST_DIGITS or not set(digest) <= set("0123456789abcdef"):
            raise InvalidRequest(
                f"digest must be the {_DIGEST_DIGITS} hex digits of X-Weights-Digest, got "
                f"{digest[:80]!r}",
                param="digest",
            )
    if seq is None and digest is None:
        raise InvalidRequest("say which state: seq, digest, or both", param="seq")
    if seq is not None and seq < 0:
        raise InvalidRequest(f"seq must be 0 or more, got {seq}", param="seq")
    at = history.resolve(f"seq:{seq}" if seq is not None else str(digest))
    if digest is not None and at.state.hex() != digest:
        raise InvalidRequest(
            f"the state at seq {seq} of {history.model} has the digest {at.state.hex()}, not "
            f"{digest}: the reply is of another ledger, or was changed",
            param="digest",
        )
    return Walker(history).to(at.node), at.node if seq is None else seq


def _now(state: ReplayedState, engine: Engine) -> dict[str, Any]:
    weights = state.weights.values()
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "dtypes": sorted({str(one.dtype).removeprefix("torch.") for one in weights}),
        "devices": sorted({engine.tensor(name).device.type for name in engine.specs()}),
        "engine": f"{type(engine).__name__}, {engine.mode}",
    }
