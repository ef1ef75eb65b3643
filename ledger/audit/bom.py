"""A model and its history of changes as a CycloneDX ML-BOM, for tools that take stock.

CycloneDX 1.6 (ECMA-424). The model is a component of type machine-learning-model; its listed
versions are its pedigree's ancestors, and every change of its weights is a commit there, with who
made it, when and why. What the format has no field for stands in properties named
`weightledger:…`, the digests among them: they are the ledger's own, not hashes of a file.
"""

import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from weightledger.ledger.audit.signing import origin
from weightledger.ledger.events import REGISTERED, STATE_CHANGING, UPDATE_REJECTED, UPDATED, Event
from weightledger.ledger.history.positions import iso_time
from weightledger.ledger.history.reader import History

SPEC_VERSION = "1.6"

_NAMESPACE = uuid.UUID("6f0c5a2e-0f3e-4c1e-9d0a-6f9b1b0a2a57")
_PAGE = 1000


def bom(history: History) -> dict[str, Any]:
    """The bill of materials of a model as it is at the head; the same for the same log."""
    head = history.head()
    name = f"{origin(history.store)}/{head.hash.hex()}"
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, name)}",
        "version": 1,
        "metadata": {
            "timestamp": iso_time(head.recorded_at),
            "tools": {
                "components": [
                    {
                        "type": "application",
                        "name": "weightledger",
                        "version": version("weightledger"),
                    }
                ]
            },
            "component": _model(history, head),
        },
    }


def _model(history: History, head: Event) -> dict[str, Any]:
    counts, measured = head.counts, _measured(history)
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": f"{origin(history.store)}@{head.state_seq}",
        "name": history.model,
        "version": f"seq:{head.state_seq}",
        "pedigree": {
            "ancestors": [_version(history, one) for one in history.versions()],
            "commits": list(_commits(history)),
            "notes": f"{counts.applied} updates applied, {counts.updates - counts.applied} refused,"
            f" {counts.versions} versions named.",
        },
        "properties": _properties(
            origin=origin(history.store),
            head_seq=head.seq,
            head_hash=head.hash.hex(),
            state_seq=head.state_seq,
            state_digest=head.state_after.hex(),
        ),
    }
    if measured:
        model["modelCard"] = {
            "quantitativeAnalysis": {
                "performanceMetrics": [
                    {"type": kind, "value": repr(value)} for kind, value in sorted(measured.items())
                ]
            }
        }
    return model


def _version(history: History, one: Any) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": f"{origin(history.store)}@{one.version_id}",
        "name": history.model,
        "version": one.version_id,
        "description": one.description,
        "properties": _properties(
            state_seq=one.seq, state_digest=one.digest.hex(), active=str(one.is_active).lower()
        ),
    }


def _commits(history: History) -> Iterator[dict[str, Any]]:
    """What changed the weights, and updates that were refused, oldest first."""
    store = history.store
    page: list[Event] = []
    for event in store.scan(0, store.head().seq + 1):
        if event.kind in STATE_CHANGING or event.kind == UPDATE_REJECTED:
            page.append(event)
        if len(page) == _PAGE:
            yield from _of_page(history, page)
            page.clear()
    yield from _of_page(history, page)


def _of_page(history: History, page: list[Event]) -> Iterator[dict[str, Any]]:
    notes = history.store.annotations([event.seq for event in page])
    for event in page:
        note = notes.get(event.seq)
        author = {"timestamp": iso_time(event.recorded_at)}
        if note is not None and note.actor is not None:
            author["name"] = note.actor
        what = f"{event.kind} to {event.state_after.hex()}"
        reason = note.reason if note is not None else None
        message = what if reason is None else f"{what}: {reason}"
        yield {"uid": event.name, "author": author, "message": message}


def _measured(history: History) -> Mapping[str, float]:
    """What was measured of the live state when the update that led to it was judged."""
    head = history.head()
    event = history.require(head.node)
    if event.kind not in (UPDATED, REGISTERED):
        return {}
    measured = event.body.get("post_metrics", {})
    return {kind: value for kind, value in measured.items() if kind != "timestamp"}


def _properties(**values: object) -> list[dict[str, str]]:
    return [{"name": f"weightledger:{name}", "value": str(one)} for name, one in values.items()]
