"""Sealing: a draft gets its place in the log, its running values and its bytes."""

from dataclasses import dataclass, field
from typing import Any

from weightledger.ledger.events.bodies.protocol import Body
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.events.event import Annotation, BlobRef, Counts, Event, decode
from weightledger.ledger.events.kinds import (
    FIRST_SCHEMA,
    FORMAT,
    KEEP_ACTIVE,
    STATE_CHANGING,
    THIS_VERSION,
    UPDATED,
    UPDATES,
    VERSIONS,
)


@dataclass(frozen=True, slots=True)
class Draft:
    """An event as its writer proposes it, before the log gives it a place.

    A draft of a state-changing kind names the digest it leads to; the node it leads to is the
    event itself, or `target_node` for a rollback. The kind's series numbers it: by its next number,
    or by `number` where the writer gives one. `active` is the number of the version that is
    active afterwards: KEEP_ACTIVE leaves it as it is, THIS_VERSION is the one being named.
    """

    body: Body
    state_after: bytes
    target_node: int | None = None
    number: int | None = None
    active: int | None = KEEP_ACTIVE
    payload: tuple[BlobRef, ...] = ()
    annotation: Annotation = field(default_factory=Annotation)
    request_id: str | None = None
    idempotency_key: str | None = None
    request_digest: bytes | None = None

    @property
    def kind(self) -> str:
        return self.body.KIND

    @property
    def series(self) -> str | None:
        return self.body.SERIES


def seal(draft: Draft, model: str, last: Event | None, now: int) -> Event:
    """Give a draft its place after `last` (None for the first event of a model).

    `now` is UTC microseconds; a clock that stepped back is held at the last event's time.
    """
    seq = 0 if last is None else last.seq + 1
    changes_state = draft.kind in STATE_CHANGING
    counts = last.counts if last else Counts()
    number = draft.number
    if draft.series == UPDATES:
        number = counts.updates + 1
    elif draft.series == VERSIONS:
        number = counts.versions
    counts = Counts(
        updates=counts.updates + (draft.series == UPDATES),
        applied=counts.applied + (draft.kind == UPDATED),
        versions=counts.versions + (draft.series == VERSIONS),
    )
    active = draft.active
    if active == KEEP_ACTIVE:
        active = last.active if last else None
    elif active == THIS_VERSION:
        active = number
    if not changes_state:
        assert last is not None and draft.state_after == last.state_after
        node = last.node
    else:
        node = seq if draft.target_node is None else draft.target_node
    fields: dict[str, Any] = {
        "format": FORMAT,
        "model": model,
        "seq": seq,
        "kind": draft.kind,
        "schema": draft.body.SCHEMA if draft.body.SCHEMA != FIRST_SCHEMA else None,
        "recorded_at": max(now, last.recorded_at) if last else now,
        "node": node,
        "parent": last.node if last and changes_state else None,
        "state_seq": seq if last is None or changes_state else last.state_seq,
        "state_before": last.state_after.hex() if last else None,
        "state_after": draft.state_after.hex(),
        "counts": {
            "updates": counts.updates,
            "applied": counts.applied,
            "versions": counts.versions,
        },
        "series": draft.series,
        "number": number,
        "active": active,
        "body": draft.body.to_json(),
        "payload": [{"digest": ref.digest.hex(), "size": ref.size} for ref in draft.payload],
        "actor": draft.annotation.digest("actor"),
        "reason": draft.annotation.digest("reason"),
        "metadata": draft.annotation.digest("metadata"),
        "request_id": draft.request_id,
        "idempotency_key": draft.idempotency_key,
        "request_digest": draft.request_digest.hex() if draft.request_digest else None,
        "prev": last.hash.hex() if last else None,
    }
    header = canonical({key: value for key, value in fields.items() if value is not None})
    return decode(header)
