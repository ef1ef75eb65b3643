"""Bodies: what was stored reads back for ever, as exactly the bytes that it was."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightledger.api.loglines import summary
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import KINDS, ROLLED_BACK, Draft, Event, decode, seal
from weightledger.ledger.events.bodies import (
    BODIES,
    AdapterLoaded,
    AdapterUnloaded,
    ApprovalDecided,
    ApprovalLapsed,
    ApprovalRequested,
    EventBody,
    HoldPlaced,
    HoldReleased,
    KeyRotation,
    NamedState,
    Observed,
    PolicyChanged,
    Pruning,
    Redaction,
    Registered,
    Repair,
    RolledBack,
    RolloutChanged,
    Updated,
    UpdateRejected,
    VersionCreated,
    VersionPinned,
    VersionRetired,
    VersionUnpinned,
    body_of,
)
from weightledger.ledger.events.bodies.operands import (
    IN_BLOBS,
    IN_PAYLOAD,
    OUTSIDE,
    TOO_LARGE,
    KeptTensor,
    Operands,
    payload_bytes_of,
)
from weightledger.ledger.events.bodies.shards import Shards
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.events.changes import FACTORS, FRAMES, WHOLE, TensorChange
from weightledger.ledger.tensors.spec import TensorSpec

FROZEN = Path(__file__).parent.parent / "fixtures" / "events" / "headers.json"
LOGS = [[row.encode() for row in log] for log in json.loads(FROZEN.read_text())]
HEADERS = [header for log in LOGS for header in log]


# Kinds that came after these headers.
YOUNGER = {
    "repaired",
    "observed",
    "policy_changed",
    "redacted",
    "signing_key_rotated",
    "approval_requested",
    "approval_decided",
    "approval_lapsed",
    "hold_placed",
    "hold_released",
    "rollout_changed",
}


class Notes:
    """The digests of an annotation whose texts are not at hand."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def digest(self, name: str) -> str | None:
        digest: str | None = getattr(self._event, f"{name}_digest")
        return digest


def sealed_again(event: Event, last: Event | None) -> Event:
    """The event that today's code makes of the same facts."""
    draft = Draft(
        body=body_of(event, BODIES[event.kind]),
        state_after=event.state_after,
        target_node=event.node if event.kind == ROLLED_BACK else None,
        number=event.number,
        active=event.active,
        payload=event.payload,
    )
    return seal(
        draft,
        event.model,
        last,
        event.recorded_at,
        annotation=Notes(event),  # type: ignore[arg-type]
        request_id=event.request_id,
        idempotency_key=event.idempotency_key,
        request_digest=event.request_digest,
    )


def test_frozen_headers_are_sealed_to_the_same_bytes() -> None:
    for log in LOGS:
        last = None
        for header in log:
            event = decode(header)
            assert sealed_again(event, last).header == header
            last = event


def test_a_header_of_every_kind_is_frozen() -> None:
    assert {decode(header).kind for header in HEADERS} | YOUNGER == set(KINDS) == set(BODIES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NUMBERS = st.floats(-1e15, 1e15)  # larger whole ones read back as integers
METRICS = st.dictionaries(st.text(max_size=8), NUMBERS, max_size=3)
TAKEN = {f.name for kind in (Updated, UpdateRejected) for f in msgspec.structs.fields(kind)}
FACTS = st.dictionaries(st.text(max_size=8).filter(lambda name: name not in TAKEN), JSON)
SEQS = st.integers(0, 2**40)
DIGESTS = st.binary(min_size=32, max_size=32)
SPECS = st.builds(TensorSpec, st.just("weights/w"), st.just("bfloat16"), st.just((3, 4)))
CHANGES = st.lists(
    st.builds(
        TensorChange,
        st.just("weights/w"),
        st.none() | DIGESTS,
        st.none() | DIGESTS,
        SEQS,
        SEQS,
        st.sampled_from([FRAMES, FACTORS, WHOLE]),
        st.none() | SPECS,
        st.none() | SPECS,
    ),
    max_size=3,
).map(tuple)
STATES = st.builds(NamedState, SEQS, SEQS, DIGESTS)
ENDS = st.tuples(SEQS, SEQS)
COUNTED = st.none() | st.lists(st.text()).map(tuple)
TEXTS = st.none() | st.text()
KEPT = st.lists(st.builds(KeptTensor, SPECS, st.none() | DIGESTS), max_size=3).map(tuple)
OPERANDS = (
    st.none()
    | st.builds(Operands, st.sampled_from([IN_PAYLOAD, IN_BLOBS]), KEPT, FACTS)
    | st.builds(Operands, st.none(), why=st.sampled_from([OUTSIDE, TOO_LARGE]))
)
MADE: dict[str, st.SearchStrategy[EventBody]] = {
    "registered": st.builds(Registered, SEQS, SEQS),
    "updated": st.builds(
        Updated,
        *(FACTS, CHANGES, st.none() | NUMBERS, METRICS, METRICS, FACTS, COUNTED, OPERANDS),
        st.none() | st.builds(Shards, SEQS, SEQS),
    ),
    "update_rejected": st.builds(UpdateRejected, FACTS, st.text(), METRICS, METRICS, FACTS),
    "rolled_back": st.builds(
        RolledBack, st.text(), SEQS, SEQS, SEQS, TEXTS, st.text(), TEXTS, FACTS
    ),
    "observed": st.builds(Observed, SEQS, st.text(), st.text(), TEXTS, FACTS),
    "policy_changed": st.builds(PolicyChanged, st.text(), st.text(), FACTS),
    "version_created": st.builds(VersionCreated, st.text(), STATES, METRICS),
    "version_retired": st.builds(VersionRetired, st.text()),
    "version_pinned": st.builds(VersionPinned, st.text(), SEQS),
    "version_unpinned": st.builds(VersionUnpinned, st.text(), SEQS),
    "adapter_loaded": st.builds(AdapterLoaded, FACTS, CHANGES),
    "adapter_unloaded": st.builds(AdapterUnloaded, FACTS, CHANGES),
    "repaired": st.builds(Repair, st.dictionaries(st.text(), SEQS), st.lists(SEQS).map(tuple)),
    "approval_requested": st.builds(ApprovalRequested, FACTS, st.none() | SEQS),
    "approval_decided": st.builds(ApprovalDecided, st.booleans()),
    "approval_lapsed": st.builds(ApprovalLapsed, st.text()),
    "hold_placed": st.builds(HoldPlaced, st.text(), SEQS, SEQS, DIGESTS),
    "hold_released": st.builds(HoldReleased, st.text()),
    "rollout_changed": st.builds(
        RolloutChanged,
        *[st.text(), st.none() | SEQS, SEQS, *[st.none() | SEQS] * 2],
        *[TEXTS, FACTS],
    ),
    "redacted": st.builds(
        Redaction,
        st.lists(SEQS).map(tuple),
        st.lists(st.sampled_from(["actor", "reason"])).map(tuple),
    ),
    "signing_key_rotated": st.builds(KeyRotation, st.none() | DIGESTS, DIGESTS),
    "pruned": st.builds(Pruning, st.lists(ENDS).map(tuple), st.lists(SEQS).map(tuple), SEQS, SEQS),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.data())
def test_a_body_reads_back_from_its_bytes(kind: str, data: st.DataObject) -> None:
    body = data.draw(MADE[kind])
    assert kind == body.KIND
    stored = canonical(body.to_json())
    read = type(body).from_json(json.loads(stored))
    assert read == body
    assert canonical(read.to_json()) == stored
    assert summary({"kind": kind, "facts": json.loads(stored)})  # what `log` says of it


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("head~1", "rolled back to seq:4 (head~1)"),
        ("2026-11-22T10:00:00Z", "rolled back to seq:4 (2026-11-22T10:00:00Z)"),
        ("update_3_1764460800", "rolled back to update_3"),
        ("v1_1764460800", "rolled back to v1"),
        ("seq:4", "rolled back to seq:4"),
    ],
)
def test_where_a_rollback_led_is_told_by_a_name_that_lasts(asked: str, told: str) -> None:
    body = RolledBack(
        to=asked, to_event=5, to_seq=4, from_seq=9, version_id=None, cause="manual"
    ).to_json()
    assert summary({"kind": ROLLED_BACK, "facts": body}) == told


def altered(**changes: Any) -> Event:
    """A stored update, something about it being otherwise."""
    event = next(e for e in map(decode, HEADERS) if e.kind == "updated")
    return msgspec.structs.replace(event, **changes)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MADE["updated"], DIGESTS)
def test_an_event_tells_what_its_body_says_without_reading_it(body: Updated, state: bytes) -> None:
    first = seal(Draft(Registered(1, 4), state), "m", None, 0)
    event = seal(Draft(body, state), "m", first, 0)
    whole = [one for one in body.tensors if one.form == WHOLE]
    ends = [end for one in whole for end in (one.before, one.after) if end is not None]
    kept = () if body.operands is None else body.operands.tensors
    in_blobs = [one.digest for one in kept if one.digest is not None and body.operands is not None]
    if body.operands is not None and body.operands.where != IN_BLOBS:
        in_blobs = []
    assert event.forward_only == any(one.form == FACTORS for one in body.tensors)
    assert event.blobs == (*ends, *in_blobs)
    stored = body.operands.payload_bytes if body.operands is not None else 0
    assert payload_bytes_of(event.body) == stored
    assert decode(event.header) == event
    assert decode(event.header).body == event.body == json.loads(canonical(body.to_json()))


@pytest.mark.parametrize(
    "header",
    [
        HEADERS[1].replace(b'"body":{', b'"body":{"\xff":0,', 1),
        HEADERS[1].replace(b'"node":', b'"node":"x",', 1),
        HEADERS[1][:-1],
        b"[]",
    ],
)
def test_a_header_that_cannot_be_read_is_corrupt(header: bytes) -> None:
    with pytest.raises(CorruptLedger, match="event header cannot be read"):
        decode(header)


def test_a_body_that_cannot_be_read_is_corrupt_and_names_its_event() -> None:
    event = altered(body_json=b"{", _body=None)
    with pytest.raises(CorruptLedger, match="its body cannot be read") as caught:
        _ = event.body
    assert caught.value.seq == event.seq


def test_a_body_that_lacks_something_is_corrupt_and_names_its_event() -> None:
    with pytest.raises(CorruptLedger, match="its body is not that of 'updated'") as caught:
        body_of(altered(body_json=b"{}", _body=None), Updated)
    assert caught.value.seq == altered().seq


def test_a_schema_of_a_newer_release_is_an_error() -> None:
    with pytest.raises(CorruptLedger, match="schema 4 of 'updated' is not known"):
        body_of(altered(schema=4), Updated)


def test_an_event_of_another_kind_is_an_error() -> None:
    with pytest.raises(CorruptLedger, match="is 'updated', expected 'rolled_back'"):
        body_of(altered(), RolledBack)
