"""Replies as they are compared: numbers that are numbers, without what is new in each."""

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from weightledger.api.reproducing.asked import EMBEDDINGS
from weightledger.ledger.debug.walking import ReplayedState
from weightledger.ledger.errors import InvalidRequest

# What is new in each reply, and what says which state it came from, which is checked by itself.
_OF_THIS_REPLY = ("id", "created", "system_fingerprint")


def read(reply: bytes | Mapping[str, Any]) -> dict[str, Any]:
    """The body of a reply; InvalidRequest for one that no state answered."""
    if isinstance(reply, bytes):
        try:
            reply = json.loads(
                reply, parse_float=_finite, parse_int=_integer, parse_constant=_finite
            )
        except (ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequest(
                f"the reply must be the JSON body as it came: {error}", param="reply"
            ) from None
    elif not _is_finite(reply):  # as a body that was read elsewhere may be
        raise InvalidRequest(
            "the reply has a number that no reply has: NaN or infinity", param="reply"
        )
    if not isinstance(reply, Mapping) or not reply:
        raise InvalidRequest("the reply must be a JSON object", param="reply")
    if "error" in reply:
        raise InvalidRequest("the reply is an error, which no state answered", param="reply")
    return dict(reply)


def _is_finite(value: Any) -> bool:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, float) and not math.isfinite(one):
            return False
        if isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
    return True


def _finite(text: str) -> float:
    """A number of a reply; what is none comes as null, so the route gives no other."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no number that a reply has")
    return number


def _integer(text: str) -> int:
    _finite(text)
    return int(text)


def require_same_state(expected: Mapping[str, Any], state: ReplayedState) -> None:
    """A reply with text names its state in its body, too."""
    named = expected.get("system_fingerprint")
    short = state.digest.value.hex()[:16]
    if isinstance(named, str) and not named.endswith(f"-{short}"):
        raise InvalidRequest(
            f"the reply's system_fingerprint is {named!r}, of another state than {short}…",
            param="reply",
        )


def comparable(reply: Mapping[str, Any], route: str) -> dict[str, Any]:
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
