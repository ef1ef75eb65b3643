"""The history over HTTP: what happened, newest first."""

from typing import Any

from fastapi import APIRouter, Request

from weightledger import DynamicModelManager
from weightledger.api.items import event_item
from weightledger.api.rest import paging
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import KINDS, UPDATE_REJECTED, UPDATED, Event
from weightledger.ledger.history.positions import parse_time
from weightledger.ledger.store import EventFilter

_QUERY = frozenset(
    {
        "parameter",
        "kind",
        "actor",
        "outcome",
        "since",
        "until",
        "min_seq",
        "max_seq",
        "after",
        "before",
        "limit",
    }
)
_OUTCOMES = {"applied": UPDATED, "rejected": UPDATE_REJECTED}


def router(manager: DynamicModelManager) -> APIRouter:
    """The list of events, and one event."""
    routes = APIRouter(prefix="/v1/models/updates", tags=["audit"])
    history = manager.log.history

    def shown(events: list[Event]) -> list[dict[str, Any]]:
        notes = history.store.annotations([event.seq for event in events])
        return [event_item(event, notes.get(event.seq)) for event in events]

    @routes.get("")
    def updates(request: Request) -> dict[str, Any]:
        """Events that pass the filters, newest first; `after` and `before` take an item's id."""
        paging.require_known(request, _QUERY)
        query = request.query_params
        limit = paging.limit(request)
        least, most = paging.integer(request, "min_seq"), paging.integer(request, "max_seq")
        if query.get("after") is not None:  # further down the list: older
            most = _least(most, history.event(query["after"]).seq - 1)
        backwards = query.get("before") is not None
        if backwards:  # further up the list: newer
            seq = history.event(query["before"]).seq + 1
            least = seq if least is None else max(least, seq)
        where = EventFilter(
            kinds=_kinds(query.getlist("kind"), query.get("outcome")),
            actors=query.getlist("actor"),
            parameter=query.get("parameter"),
            since=_moment(request, "since"),
            until=_moment(request, "until"),
            min_seq=least,
            max_seq=most,
        )
        found = history.events(where, limit=limit + 1, newest_first=not backwards)
        has_more = len(found) > limit
        found = found[:limit]
        if backwards:
            found.reverse()
        return paging.page(shown(found), "id", has_more=has_more)

    @routes.get("/{event_id}")
    def update(event_id: str) -> dict[str, Any]:
        """One event by update id, version id or `event_{seq}`."""
        return shown([history.event(event_id)])[0]

    return routes


def _least(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def _kinds(kinds: list[str], outcome: str | None) -> list[str]:
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise InvalidRequest(
            f"kind must be one of {', '.join(KINDS)}; got {unknown[0]!r}", param="kind"
        )
    if outcome is None:
        return kinds
    if outcome not in _OUTCOMES:
        raise InvalidRequest(
            f"outcome must be one of {', '.join(_OUTCOMES)}; got {outcome!r}", param="outcome"
        )
    if kinds and _OUTCOMES[outcome] not in kinds:
        raise InvalidRequest(f"outcome {outcome!r} excludes every kind asked for", param="outcome")
    return [_OUTCOMES[outcome]]


def _moment(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    moment = parse_time(text)
    if moment is None:
        raise InvalidRequest(
            f"{name} must be an ISO 8601 time such as 2026-11-22T10:00:00Z, got {text!r}",
            param=name,
        )
    return moment
