"""Headers: exact bytes, exact hashes, running values."""

import hashlib
import json

import pytest

from weightledger.ledger import events
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import NO_WORDS, Annotation, BlobRef, Draft, Event, decode, seal
from weightledger.ledger.events.bodies import (
    NamedState,
    Registered,
    RolledBack,
    Updated,
    UpdateRejected,
    VersionCreated,
)
from weightledger.ledger.events.canonical import canonical

STATE = [bytes([n]) * 32 for n in range(4)]
SALT = bytes(range(16))


def registered() -> Event:
    return seal(Draft(Registered(1, 4), STATE[0]), "digits", None, 1_700_000_000_000_000)


def updated(
    last: Event, state: bytes, payload: tuple[BlobRef, ...] = (), note: Annotation = NO_WORDS
) -> Event:
    draft = Draft(Updated({}, (), None), state, payload=payload)
    return seal(draft, "digits", last, last.recorded_at + 1, annotation=note)


def test_a_header_is_canonical_json_and_its_hash_is_an_rfc6962_leaf() -> None:
    event = updated(registered(), STATE[1], payload=(BlobRef(STATE[3], 5),))
    fields = json.loads(event.header)
    assert event.header == json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    assert event.hash == hashlib.sha256(b"\x00" + event.header).digest()
    assert decode(event.header) == event


def test_numbers_follow_rfc8785() -> None:
    value = {"b": [1e-7, 1e21, 0.1, 5.0, -0.0, 333333333.33333329], "a": "€\u000f\n"}
    assert canonical(value) == (
        b'{"a":"\xe2\x82\xac\\u000f\\n","b":[1e-7,1e+21,0.1,5,0,333333333.3333333]}'
    )


def test_running_values_and_names() -> None:
    first = registered()
    one = updated(first, STATE[1])
    version = seal(
        Draft(
            VersionCreated("a state", NamedState(1, 1, STATE[1])),
            STATE[1],
            active=events.THIS_VERSION,
        ),
        "digits",
        one,
        one.recorded_at,
    )
    refused = seal(
        Draft(UpdateRejected({}, "no"), STATE[1]),
        "digits",
        version,
        version.recorded_at,
    )
    back = seal(
        Draft(RolledBack("seq:0", 0, 0, 1, None, "manual"), STATE[0], target_node=0, active=None),
        "digits",
        refused,
        refused.recorded_at,
    )
    two = updated(back, STATE[2])
    assert [e.name for e in (first, one, version, refused, back, two)] == [
        "event_0",
        "update_1_1700000000",
        "v0_1700000000",
        "update_2_1700000000",
        "event_4",
        "update_3_1700000000",
    ]
    assert [e.node for e in (first, one, version, refused, back, two)] == [0, 1, 1, 1, 0, 5]
    assert [e.parent for e in (first, one, back, two)] == [None, 0, 1, 0]
    assert [e.state_seq for e in (version, refused, back, two)] == [1, 1, 4, 5]
    assert [e.active for e in (one, version, refused, back, two)] == [None, 0, 0, None, None]
    assert (two.counts.updates, two.counts.applied, two.counts.versions) == (3, 2, 1)
    assert two.prev == back.hash
    assert two.state_before == STATE[0]


def test_time_never_runs_backwards() -> None:
    first = registered()
    late = seal(Draft(Updated({}, (), None), STATE[1]), "digits", first, first.recorded_at - 10**9)
    assert late.recorded_at == first.recorded_at


def test_free_text_enters_a_header_only_as_a_salted_hash() -> None:
    note = Annotation(actor="alice", reason="spring cleaning", metadata='{"k":1}', salt=SALT)
    event = updated(registered(), STATE[1], note=note)
    assert b"alice" not in event.header
    assert b"spring" not in event.header
    expected = hashlib.sha256(SALT + b"actor\x00alice").hexdigest()
    assert event.actor_digest == note.digest("actor") == expected
    assert event.reason_digest == note.digest("reason")


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff", b'{"format":2}'])
def test_bytes_that_are_no_header_are_corrupt(damage: bytes) -> None:
    with pytest.raises(CorruptLedger):
        decode(damage)
