"""Sealing: the header written piece by piece is the canonical one, and reads back as the event."""

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from weightledger.ledger.events import (
    FORMAT,
    KEEP_ACTIVE,
    KINDS,
    PINS,
    PRUNINGS,
    REGISTERED,
    RETIRED,
    STATE_CHANGING,
    THIS_VERSION,
    UPDATED,
    UPDATES,
    VERSIONS,
    Annotation,
    BlobRef,
    Draft,
    Event,
    decode,
    seal,
)
from weightledger.ledger.events.bodies import Registered
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.events.kinds import FIRST_SCHEMA

DIGEST = st.binary(min_size=32, max_size=32)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.integers(0, 2**53 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@dataclass(frozen=True)
class Facts:
    """A body of any kind, series and schema, with whatever facts."""

    KIND: str
    SERIES: str | None
    SCHEMA: int
    value: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.value


DRAFT = st.builds(
    Draft,
    body=st.builds(
        Facts,
        st.sampled_from([kind for kind in KINDS if kind != REGISTERED]),
        st.sampled_from([None, UPDATES, VERSIONS, RETIRED, PINS, PRUNINGS]),
        st.integers(FIRST_SCHEMA, 3),
        st.dictionaries(TEXT, JSON, max_size=4),
    ),
    state_after=DIGEST,
    target_node=st.none() | NUMBER,
    number=st.none() | NUMBER,
    active=st.none() | NUMBER | st.sampled_from([KEEP_ACTIVE, THIS_VERSION]),
    payload=st.lists(st.builds(BlobRef, DIGEST, NUMBER), max_size=3).map(tuple),
)
ASKED = st.fixed_dictionaries(
    {
        "annotation": st.builds(Annotation, st.none() | TEXT, st.none() | TEXT, st.none() | TEXT),
        "request_id": st.none() | TEXT,
        "idempotency_key": st.none() | TEXT,
        "request_digest": st.none() | DIGEST,
    }
)


def first(model: str) -> Event:
    return seal(Draft(Registered(1, 4), bytes(32)), model, None, 7)


@given(draft=DRAFT, asked=ASKED, model=TEXT.filter(bool), now=NUMBER)
def test_a_sealed_header_is_canonical_and_reads_back_as_the_event(
    draft: Draft, asked: dict[str, Any], model: str, now: int
) -> None:
    last = first(model)
    if draft.kind not in STATE_CHANGING:
        draft = replace(draft, state_after=last.state_after)
    event = seal(draft, model, last, now, **asked)
    note, request = asked["annotation"], asked["request_digest"]
    fields: dict[str, Any] = {
        "format": FORMAT,
        "model": model,
        "seq": 1,
        "kind": draft.kind,
        "recorded_at": max(now, 7),
        "node": event.node,
        "parent": event.parent,
        "state_seq": event.state_seq,
        "state_before": last.state_after.hex(),
        "state_after": draft.state_after.hex(),
        "counts": {
            "updates": event.counts.updates,
            "applied": event.counts.applied,
            "versions": event.counts.versions,
        },
        "series": draft.series,
        "number": event.number,
        "active": event.active,
        "schema": None if event.schema == FIRST_SCHEMA else event.schema,
        "body": draft.body.to_json(),
        "payload": [{"digest": ref.digest.hex(), "size": ref.size} for ref in draft.payload],
        "actor": note.digest("actor"),
        "reason": note.digest("reason"),
        "metadata": note.digest("metadata"),
        "request_id": asked["request_id"],
        "idempotency_key": asked["idempotency_key"],
        "request_digest": request.hex() if request else None,
        "prev": last.hash.hex(),
    }
    assert event.counts.updates == (draft.series == UPDATES)
    assert event.counts.applied == (draft.kind == UPDATED)
    assert event.header == canonical({k: v for k, v in fields.items() if v is not None})
    read = decode(event.header)
    assert read == event
    assert str(read.body) == str(event.body)  # 1.0 is read as 1


@given(model=TEXT.filter(bool))
def test_a_first_header_is_canonical(model: str) -> None:
    event = first(model)
    assert decode(event.header) == event
    assert canonical(json.loads(event.header)) == event.header
