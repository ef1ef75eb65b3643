"""The one event of what all ranks did."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightledger.ledger.events import BlobRef, Draft
from weightledger.ledger.events.bodies import Updated, UpdateRejected
from weightledger.ledger.events.bodies.shards import Index, Shards
from weightledger.ledger.events.changes import TensorChange
from weightledger.ledger.sharding.encoding import Encoded
from weightledger.ledger.sharding.limits import norm_of
from weightledger.ledger.tensors.digest import content_digest, root
from weightledger.ledger.tensors.state import StateDigest
from weightledger.ledger.writing.policy import UNJUDGED, Verdict


def drafted(
    state: StateDigest,
    changed: Sequence[str],
    parts: Sequence[Mapping[str, Encoded]],
    refs: Sequence[Sequence[BlobRef]],
    orders: Mapping[str, Sequence[int]],
    unwrapped: Sequence[str],
    verdict: Verdict = UNJUDGED,
) -> tuple[Draft, bytes | None, StateDigest]:
    """The event that holds what every rank did, the index that belongs into its payload, and the
    state that it leads to.

    `parts` are by rank; `orders` says in which order the ranks' frames make a tensor. Under a
    verdict that refuses, it is the event that says so, and the state stays.
    """
    changes = []
    order = np.array([orders[name] for name in changed], np.int64)
    lengths = np.zeros((len(changed), len(parts)), np.int64)
    for row, name in enumerate(changed):
        done = [parts[rank][name] for rank in orders[name]]
        changes.append(
            TensorChange(
                name,
                state.digests[name],
                root(b"".join(one.chunks for one in done)),
                sum(one.size for one in done),
                sum(one.changed for one in done),
            )
        )
        lengths[row] = [one.size for one in done]
    index = Index(order, lengths).written() if changes else None
    facts: dict[str, Any] = {"operation": "record"}
    if unwrapped:
        facts["unwrapped"] = list(unwrapped)
    if verdict.reason is not None:
        refusal = UpdateRejected(facts, verdict.reason, evidence=verdict.evidence)
        return Draft(refusal, state.value), None, state
    body = Updated(
        facts,
        tuple(changes),
        norm_of(changed, parts),
        # No rank has the model that an evaluator would be asked about.
        evidence={**verdict.evidence, "evaluated": False},
        shards=None if index is None else Shards(len(parts), len(index)),
    )
    payload = [ref for rank in refs for ref in rank]
    if index is not None:
        payload.append(BlobRef(content_digest(index), len(index)))
    after = state.with_digests({change.name: change.after for change in changes if change.after})
    return Draft(body, after.value, payload=tuple(payload)), index, after
