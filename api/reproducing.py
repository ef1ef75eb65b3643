"""Old replies again: a request is answered once more, on the state that the reply came from.

The routes that answer are the server's own, around an engine that shows the rebuilt state.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI

from weightledger import Engine
from weightledger.api.rest import errors
from weightledger.api.rest.routes import inference
from weightledger.api.rest.text import routes as text
from weightledger.api.rest.workers import Workers
from weightledger.ledger import adapters
from weightledger.ledger.adapters.adapter import all_of
from weightledger.ledger.debug.agreement import Agreement, agreement
from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.engines import Live
from weightledger.ledger.engines.adapted import AdapterEngine, through
from weightledger.ledger.errors import InvalidRequest, LedgerError
from weightledger.ledger.history.reader import History
from weightledger.ledger.monitoring.samples import Measuring
from weightledger.ledger.tensors.spec import WEIGHTS

EMBEDDINGS = "/v1/embeddings"
GENERATING = ("/v1/completions", "/v1/chat/completions")
ROUTES = ("/invocations", EMBEDDINGS, *GENERATING)

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

# What is new in each reply, and what says which state it came from, which is checked by itself.
_OF_THIS_REPLY = ("id", "created", "system_fingerprint")


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
            "first_difference": None if compared.first is None else asdict(compared.first),
            "largest_difference": compared.largest,
            "largest_at": compared.largest_at,
            "now": dict(self.now),
            "promised_when": list(PROMISED_WHEN),
            "not_promised": list(self.not_promised),
        }


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
    facts = _facts_of(asked)
    if facts.get("stream"):
        raise InvalidRequest(
            "a streamed reply is compared whole: leave out stream from the request, and give the "
            "reply as it is without it",
            param="request",
        )
    expected = _reply_of(reply)
    state, shown_seq = _state(history, seq, digest)
    _require_same_state(expected, state)
    model = _Rebuilt(history.model, engine, state, shown_seq)
    got = _answered(model, route, asked)
    return Reproduction(
        history.model,
        route,
        shown_seq,
        state.digest.value.hex(),
        got,
        agreement(_comparable(expected, route), _comparable(got, route)),
        _now(state, engine),
        _doubts(route, facts),
    )


class _Rebuilt:
    """A state of the past as inference routes see it."""

    def __init__(self, name: str, engine: Engine, state: ReplayedState, seq: int) -> None:
        self.model_name = name
        self.engine = engine
        beside = {n: t for n, t in state.tensors.items() if not n.startswith(WEIGHTS)}
        self.adapter_names = adapters.names(beside)
        _require_unused(engine)
        weights = _weights_for(engine, state)
        try:
            if isinstance(engine, AdapterEngine):
                prepared = engine.prepare_with(weights, all_of(beside))
            else:
                prepared = engine.prepare(weights)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"the loaded model is not the one of the log {name!r}: {error}", param="model"
            ) from error
        engine.publish(prepared, seq=seq, digest=state.digest.value)

    @contextlib.contextmanager
    def lease(
        self, adapter: str | None = None, measuring: Measuring | None = None
    ) -> Iterator[Live]:
        """The state; nothing is measured."""
        with self.engine.lease() as live:
            yield live if adapter is None else through(live, adapter)


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


def _require_unused(engine: Engine) -> None:
    try:
        with engine.lease():
            pass
    except LedgerError:
        return
    raise InvalidRequest("the engine shows a model already: load another for this", param="engine")


def _weights_for(engine: Engine, state: ReplayedState) -> dict[str, torch.Tensor]:
    """The state's weights by the names of the engine; InvalidRequest when they are not its own."""
    weights = {
        name.removeprefix(WEIGHTS): tensor
        for name, tensor in state.tensors.items()
        if name.startswith(WEIGHTS)
    }
    own = engine.specs().keys()
    if weights.keys() != own:
        missing, unknown = sorted(own - weights.keys()), sorted(weights.keys() - own)
        raise InvalidRequest(
            f"the loaded model is not the one of the log {state.model!r}: "
            f"{len(missing)} of its tensors are not in the state ({', '.join(missing[:3])}), "
            f"{len(unknown)} of the state's are not in it ({', '.join(unknown[:3])})",
            param="model",
        )
    return weights


def _answered(model: _Rebuilt, route: str, body: bytes) -> dict[str, Any]:
    """What the server's route answers; InvalidRequest with its words where it refuses."""
    app = FastAPI(openapi_url=None)
    app.include_router(inference.router(model))
    app.include_router(text.router(model, Workers(1, 0)))
    errors.install(app)
    # On a thread of its own, so that it can be called where an event loop runs already.
    with ThreadPoolExecutor(1) as pool:
        try:
            status, answer = pool.submit(asyncio.run, _post(app, route, body)).result()
        except LedgerError:
            raise
        except Exception as error:
            raise InvalidRequest(
                f"the model fails on this request: {error!r}", param="request"
            ) from error
    got: dict[str, Any] = json.loads(answer)
    if status != 200:
        raise InvalidRequest(
            f"the request is refused with status {status}: {got['error']['message']}",
            param="request",
        )
    return got


async def _post(app: FastAPI, path: str, body: bytes) -> tuple[int, bytes]:
    """One request to an application in this process, and its reply."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": None,
        "server": None,
    }
    arrived = iter([{"type": "http.request", "body": body, "more_body": False}])
    sent: list[Mapping[str, Any]] = []

    async def receive() -> Mapping[str, Any]:
        for message in arrived:
            return message
        await asyncio.Event().wait()  # whoever asked does not go away
        raise AssertionError("unreachable")

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)  # type: ignore[arg-type]
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:])


def _facts_of(request: bytes) -> Mapping[str, Any]:
    """The request as far as it can be read: the route says what is wrong with it otherwise."""
    try:
        facts = json.loads(request)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _reply_of(reply: bytes | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(reply, bytes):
        try:
            reply = json.loads(
                reply, parse_float=_finite, parse_int=_integer, parse_constant=_finite
            )
        except (ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequest(
                f"the reply must be the JSON body as it came: {error}", param="reply"
            ) from None
    if not isinstance(reply, Mapping) or not reply:
        raise InvalidRequest("the reply must be a JSON object", param="reply")
    if "error" in reply:
        raise InvalidRequest("the reply is an error, which no state answered", param="reply")
    return dict(reply)


def _finite(text: str) -> float:
    """A number of a reply; what is none comes as null, so the route gives no other."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no number that a reply has")
    return number


def _integer(text: str) -> int:
    _finite(text)
    return int(text)


def _require_same_state(expected: Mapping[str, Any], state: ReplayedState) -> None:
    """A reply with text names its state in its body, too."""
    named = expected.get("system_fingerprint")
    short = state.digest.value.hex()[:16]
    if isinstance(named, str) and not named.endswith(f"-{short}"):
        raise InvalidRequest(
            f"the reply's system_fingerprint is {named!r}, of another state than {short}…",
            param="reply",
        )


def _comparable(reply: Mapping[str, Any], route: str) -> dict[str, Any]:
    """What a state has to answer alike; vectors as numbers, however they were encoded."""
    kept = {key: value for key, value in reply.items() if key not in _OF_THIS_REPLY}
    if route != EMBEDDINGS or not isinstance(kept.get("data"), list):
        return kept
    return {**kept, "data": [_decoded(one) for one in kept["data"]]}


def _decoded(item: Any) -> Any:
    vector = item.get("embedding") if isinstance(item, dict) else None
    if not isinstance(vector, str):
        return item
    try:
        numbers = np.frombuffer(base64.b64decode(vector, validate=True), "<f4").tolist()
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest(
            f"an embedding of the reply is neither numbers nor base64 of float32: {error}",
            param="reply",
        ) from None
    return {**item, "embedding": numbers}


def _doubts(route: str, request: Mapping[str, Any]) -> tuple[str, ...]:
    if route not in GENERATING or request.get("seed") is not None:
        return ()
    temperature = request.get("temperature")
    if temperature == 0:
        return ()
    drawn = 1.0 if temperature is None else temperature
    return (f"the text was drawn at temperature {drawn} without a seed: each time is another",)


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
