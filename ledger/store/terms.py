"""What an event can be found by, as terms, and what a filter asks for, as clauses of them.

A term is a number made of a field and a value: the kind, the actor, a parameter, a word of the
reason or the actor, a key of the metadata with its value. Two values may share one, so whoever
finds an event by its terms looks at the event itself (`passes`).
"""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import orjson

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import UPDATED, Annotation, Event
from weightledger.ledger.events.bodies import counted_parameters
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.store import EventFilter

_WORD = re.compile(r"\w+")
_PARAMETERS = 16_384  # whose terms are kept


def term(field: str, *parts: str) -> int:
    """The number of a field and a value: 64 bits, as databases keep them."""
    name = "\0".join((field, *parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest(), signed=True)


@lru_cache(_PARAMETERS)
def parameter_term(name: str) -> int:
    """The term of the updates that count for a parameter; a glob may stand for hundreds."""
    return term("parameter", name)


def words(*texts: str | None) -> set[str]:
    """The words of texts, upper and lower case the same."""
    return {word for text in texts if text for word in _WORD.findall(text.casefold())}


def pairs(metadata: str | None) -> Iterator[tuple[str, str]]:
    """The keys of a JSON object with their values, as `metadata.KEY=VALUE` says them.

    A string stands for itself, any other value for its JSON; what is nested has no name.
    """
    fields = orjson.loads(metadata) if metadata else {}
    for key, value in fields.items():
        if not isinstance(value, dict | list):
            yield key, value if isinstance(value, str) else orjson.dumps(value).decode()


def written(value: str) -> set[str]:
    """How a value that is asked for may stand in metadata: as it is, and where it is a number also
    as `pairs` has it, however many zeros or which exponent it was asked with."""
    forms = {value}
    try:
        number = orjson.loads(value)
        if type(number) in (int, float):
            forms |= {form for _, form in pairs(canonical({"": number}).decode())}
    except (ValueError, InvalidRequest):
        pass  # a text, or a number that no metadata has
    return forms


def terms_of(
    kind: str,
    body: dict[str, Any],
    actor: str | None,
    reason: str | None,
    metadata: str | None,
) -> set[int]:
    """Everything that an event can be found by."""
    found = {term("kind", kind)}
    if actor is not None:
        found.add(term("actor", actor))
    if kind == UPDATED:
        found |= {parameter_term(name) for name in counted_parameters(body)}
    found |= {term("word", word) for word in words(actor, reason)}
    found |= {term("metadata", key, value) for key, value in pairs(metadata)}
    return found


def norm_of(body: dict[str, Any]) -> float:
    """The norm of an update, NaN where there is none."""
    norm = body.get("delta_norm")
    return math.nan if norm is None else float(norm)


def clauses(where: EventFilter) -> list[list[int]]:
    """What has to hold, parameters apart: of each clause one term or another. The rarest are
    likely to come first."""
    wanted = [
        [term("metadata", key, form) for form in sorted(written(value))]
        for key, value in sorted(where.metadata.items())
    ]
    if where.text is not None:
        wanted += [[term("word", word)] for word in sorted(words(where.text), key=len)[::-1]]
    if where.actors:
        wanted.append([term("actor", actor) for actor in sorted(set(where.actors))])
    if where.min_norm is not None or where.parameter is not None:  # of updates alone
        wanted.append([term("kind", UPDATED)])
    if where.kinds:
        wanted.append([term("kind", kind) for kind in sorted(set(where.kinds))])
    return wanted


def passes(
    where: EventFilter, event: Event, note: Annotation | None, names: set[str] | None
) -> bool:
    """Whether an event passes a filter, its bounds apart; `names` are the parameters it wants, None
    for whichever."""
    note = note or Annotation()
    if where.kinds and event.kind not in where.kinds:
        return False
    if where.actors and note.actor not in where.actors:
        return False
    if where.parameter is not None:
        counted = counted_parameters(event.body) if event.kind == UPDATED else []
        if not counted or not (names is None or names.intersection(counted)):
            return False
    if where.text is not None and not words(where.text) <= words(note.actor, note.reason):
        return False
    if where.min_norm is not None and not norm_of(dict(event.body)) >= where.min_norm:
        return False
    if not where.metadata:
        return True
    there = dict(pairs(note.metadata))
    return all(there.get(key) in written(value) for key, value in where.metadata.items())
