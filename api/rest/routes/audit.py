"""The history over HTTP: what happened, newest first."""

from typing import Annotated, Any

from fastapi import Query

from weightledger import DynamicModelManager
from weightledger.api.items import activity_item, density_item, event_item, kinds_of
from weightledger.api.rest import paging, queries
from weightledger.api.rest.answers.events import ActivityList, Density, EventList
from weightledger.api.rest.answers.events import Event as EventReply
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers
from weightledger.ledger.events import Event
from weightledger.ledger.history.positions import parse_time
from weightledger.ledger.history.reader import History
from weightledger.ledger.store import EventFilter


def router(manager: DynamicModelManager) -> Declared:
    """The list of events, and one event."""
    routes = Declared(prefix="/v1/models/updates", tags=["audit"])
    history = manager.log.history

    def shown(events: list[Event]) -> list[dict[str, Any]]:
        notes = history.store.annotations([event.seq for event in events])
        return [event_item(event, notes.get(event.seq)) for event in events]

    @routes.get(
        "",
        responses=answers(EventList),
        openapi_extra={"parameters": [dict(queries.METADATA_FILTER)]},
    )
    def list_updates(query: Annotated[queries.Updates, Query()]) -> dict[str, Any]:
        """Events that pass the filters, newest first; `after` and `before` take an item's id."""
        found, has_more = listed(history, query)
        return paging.page(shown(found), "id", has_more=has_more)

    @routes.get("/{event_id}", responses=answers(EventReply))
    def get_update(event_id: str) -> dict[str, Any]:
        """One event by update id, version id or `event_{seq}`."""
        return shown([history.event(event_id)])[0]

    return routes


def listed(history: History, query: queries.Updates) -> tuple[list[Event], bool]:
    """A page of the events that pass a query's filters, newest first, and whether there are more
    on its far side."""
    limit, least, most = query.limit, query.min_seq, query.max_seq
    if query.after is not None:  # further down the list: older
        most = _least(most, history.event(query.after).seq - 1)
    backwards = query.before is not None
    if query.before is not None:  # further up the list: newer
        seq = history.event(query.before).seq + 1
        least = seq if least is None else max(least, seq)
    kinds = kinds_of(query.kind, query.outcome)
    if kinds is None:
        return [], False
    where = EventFilter(
        kinds=kinds,
        actors=query.actor,
        parameter=query.parameter,
        since=_moment(query.since),
        until=_moment(query.until),
        min_seq=least,
        max_seq=most,
        text=query.text,
        min_norm=query.min_norm,
        metadata=query.metadata,
    )
    found = history.events(where, limit=limit + 1, newest_first=not backwards)
    has_more = len(found) > limit
    found = found[:limit]
    if backwards:
        found.reverse()
    return found, has_more


def activity_router(manager: DynamicModelManager) -> Declared:
    """How many events there were."""
    routes = Declared(prefix="/v1/models/activity", tags=["audit"])

    @routes.get("", responses=answers(ActivityList))
    def get_activity(query: Annotated[queries.ActivityQuery, Query()]) -> dict[str, Any]:
        """Counts of events by day, kind, outcome and actor, the newest day first."""
        counted = manager.log.history.activity(
            EventFilter(
                kinds=query.kind,
                actors=query.actor,
                since=_moment(query.since),
                until=_moment(query.until),
            )
        )
        return {
            "object": "list",
            "data": [activity_item(one) for one in counted],
            "total_events": sum(one.events for one in counted),
        }

    @routes.get("/density", responses=answers(Density))
    def get_density(query: Annotated[queries.DensityQuery, Query()]) -> dict[str, Any]:
        """How many events there were over time: all of the log, or between two times, in at most
        120 steps. What it costs does not depend on how many events there are."""
        density = manager.log.history.density(_moment(query.since), _moment(query.until))
        return density_item(density)

    return routes


def _least(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def _moment(text: str | None) -> int | None:
    return None if text is None else parse_time(text)
