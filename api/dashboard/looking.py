"""Pages that say what is and what was: now, the timeline, an event, two states, a parameter."""

import threading
from typing import Annotated, Any
from urllib.parse import parse_qsl

import orjson
from fastapi import Query, Request, Response
from pydantic import Field, ValidationError

from weightledger import DynamicModelManager
from weightledger.api.dashboard import facts
from weightledger.api.dashboard.feed import Feed, FeedPlace, View
from weightledger.api.dashboard.sessions import PARTS
from weightledger.api.dashboard.shell import PageRoute, Shell, same, tree_links
from weightledger.api.dashboard.showing import Url, again, fill, page, url_of
from weightledger.api.dashboard.strip import strip
from weightledger.api.rest import queries
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.queries import first_problem
from weightledger.api.rest.routes.audit import listed
from weightledger.api.rest.routes.watching import begins_after
from weightledger.api.rest.streaming import EventStream
from weightledger.ledger.audit.notary import Notary
from weightledger.ledger.debug.drawn import diff_picture, spread_picture
from weightledger.ledger.debug.spread import spread
from weightledger.ledger.errors import InvalidRequest, NotFound, Unavailable
from weightledger.ledger.events import KINDS
from weightledger.ledger.history.positions import parse_time
from weightledger.ledger.store import EventFilter

_RECENT = 60
_LONG = 200
_NEWS = 400  # rows of one message
_MOST_ROWS = 500
_MOST_HEADER = 20_000
_METADATA = {"parameters": [dict(queries.METADATA_FILTER)]}


class Timeline(queries.Updates):
    """Which events are shown; `flat` shows runs of updates one by one."""

    flat: bool = Field(False, description="Runs of updates one by one.")


def router(shell: Shell, notary: Notary, ending: threading.Event) -> Declared:
    """The pages, and the stream that keeps them as things are."""
    manager = shell.manager
    routes = Declared(route_class=PageRoute)
    log = manager.log
    history = log.history
    feed = Feed(log, lambda: manager.fault, Writing(manager), ending)

    @routes.get("/")
    def now(request: Request) -> Response:
        known = history.head().seq
        events = facts.items(history, history.events(EventFilter(), limit=_RECENT))
        named = facts.names(history, events)
        return shell.show(
            request,
            "now.html",
            "/v1/models/status",
            known=known,
            runs=facts.grouped(events, named),
            names=named,
            tree=shell.tree(request),
            measured=manager.metrics(),
            parameters=len(log.live.state.specs),
            database=history.store.home.version(),
            others=[name for name in history.store.home.models() if name != manager.model_name],
            evaluator=manager.has_evaluator,
            vouched=facts.vouched(manager, notary),
            replicas=facts.replicas(history),
            trials=[one for one in facts.trials(manager) if one["status"] == "running"],
            approvals=[one for one in facts.approvals(log) if one["state"] == "pending"],
        )

    @routes.get("/ui/timeline", openapi_extra=_METADATA)
    def timeline(request: Request, query: Annotated[Timeline, Query()]) -> Response:
        known = history.head().seq
        pages = _rows(manager, query, request)

        def zoomed(since: str, until: str) -> str:
            return again(request, since=since, until=until)

        since, until = (parse_time(one) if one else None for one in (query.since, query.until))
        return shell.show(
            request,
            "timeline.html",
            same("/v1/models/updates", request),
            known=known,
            **pages,
            tree=shell.tree(request),
            strip=strip(history, since, until, zoomed),
            kinds=KINDS,
            live=query.after is None and query.before is None and query.until is None,
        )

    @routes.get(PARTS + "rows", openapi_extra=_METADATA)
    def rows(request: Request, query: Annotated[Timeline, Query()]) -> Response:
        """The timeline's rows alone, for a page that is open."""
        return page(request, "rows.html", **_rows(manager, query, request))

    @routes.get(PARTS + "live")
    async def live(
        request: Request,
        after: queries.Seq | None = None,
        rows: Annotated[str | None, Query(max_length=4000)] = None,
        tree: bool = False,
    ) -> Response:
        """The stream of one open page; `rows` is the query of its table."""
        if ending.is_set():
            raise Unavailable("the server is stopping; ask again when it is back")
        if rows is not None:
            _filters(rows)
        head = log.live.head
        last = max(head.seq, after or 0)
        begins = begins_after(request, after, head) if last == head.seq else last
        view = View(url_of(request).base, rows, tree)
        return EventStream(FeedPlace(feed, view), begins, head.seq)

    @routes.get("/ui/events/{event_id}")
    def event(request: Request, event_id: str) -> Response:
        one = history.resolve(event_id).event if ":" in event_id else history.event(event_id)
        item = facts.items(history, [one])[0]
        changes = one.node == one.seq and one.parent is not None
        diff = (
            log.diff(f"seq:{one.parent}", f"seq:{one.seq}", ranks="none").to_json()
            if changes
            else None
        )
        return shell.show(
            request,
            "event.html",
            f"/v1/models/updates/{one.name}",
            item=item,
            named=facts.names(history, [item]).get(one.seq, []),
            diff=diff,
            picture=diff_picture(diff) if diff else "",
            spread=spread_picture(steps) if (steps := spread(history, one)) else "",
            verdicts=facts.verdicts(history, one),
            header=one.header.decode("utf-8", "replace")[:_MOST_HEADER],
            header_bytes=len(one.header),
            parent=one.parent,
            live=one.node == log.live.head.node,
            next=one.seq + 1 if one.seq < history.head().seq else None,
        )

    @routes.get("/ui/compare")
    def compare(
        request: Request,
        from_: Annotated[str, Query(alias="from")] = "",
        to: str = "head",
        each: bool = False,
    ) -> Response:
        diff = log.diff(from_, to, ranks="none").to_json() if from_ else None
        drawn = log.each(from_, to).to_json() if each and from_ else diff
        ends = [history.require(diff[end]["seq"]) for end in ("from", "to")] if diff else []
        measured = [one.body.get("post_metrics", {}) for one in ends]
        return shell.show(
            request,
            "compare.html",
            same("/v1/models/diff", request) if from_ else "/v1/models/diff?from=seq:0",
            diff=diff,
            picture=diff_picture(drawn) if drawn else "",
            measured=measured if any(measured) else [],
            named=facts.versions(history, _LONG, None)[0],
            most=_MOST_ROWS,
        )

    @routes.get("/ui/parameters")
    def parameters(request: Request, text: str = "") -> Response:
        every = [
            one for one in history.parameters(log.live.state) if text.lower() in one.name.lower()
        ]
        return shell.show(
            request,
            "parameters.html",
            "/v1/models/parameters",
            parameters=every[:_MOST_ROWS],
            total=len(every),
        )

    @routes.get("/ui/parameters/{name:path}")
    def parameter(request: Request, name: str) -> Response:
        known = next((one for one in history.parameters(log.live.state) if one.name == name), None)
        if known is None:
            raise NotFound(f"Parameter {name!r} not found", param="name")
        escaped = "".join(f"[{mark}]" if mark in "*?[" else mark for mark in name)
        touched = history.events(EventFilter(parameter=escaped), limit=_LONG)
        events = facts.items(history, touched)
        return shell.show(
            request,
            "parameter.html",
            Url("")("/v1/models/updates", parameter=escaped),
            parameter=known,
            escaped=escaped,
            events=events,
            names=facts.names(history, events),
        )

    return routes


class Writing:
    """What open pages are sent, see `feed.Write`."""

    def __init__(self, manager: DynamicModelManager) -> None:
        self._manager = manager

    def __call__(self, view: View, after: int, head: int) -> str:
        """As JSON: the header and, where the page has them, the new rows and the tree."""
        manager, url = self._manager, Url(view.base)
        sent: dict[str, Any] = {
            "seq": head,
            "events": max(0, head - after),
            "header": fill("live.html", url, head=facts.header(manager)),
        }
        if view.rows is not None and head > after:
            sent |= self._rows(url, view.rows, after + 1, head)
        if view.tree:
            sent["tree"] = facts.tree(manager.log, tree_links(url))
        return orjson.dumps(sent).decode()

    def _rows(self, url: Url, rows: str, first: int, last: int) -> dict[str, Any]:
        query = _filters(rows)
        least = first if query.min_seq is None else max(first, query.min_seq)
        most = last if query.max_seq is None else min(last, query.max_seq)
        bounds = {"min_seq": least, "max_seq": most, "limit": _NEWS, "after": None, "before": None}
        history = self._manager.log.history
        events, more = listed(history, query.model_copy(update=bounds))
        shown = facts.items(history, events)
        named = facts.names(history, shown)
        runs = facts.grouped(shown, named, flat=query.flat)
        gap = (first, shown[-1]["seq"] - 1) if more else None
        return {"rows": fill("rows.html", url, runs=runs, names=named, gap=gap, older=None)}


def _rows(manager: DynamicModelManager, query: Timeline, request: Request) -> dict[str, Any]:
    """What a page of the timeline has: its runs, and where the next pages begin."""
    history = manager.log.history
    if "limit" not in request.query_params:
        query = query.model_copy(update={"limit": _LONG})
    events, more = listed(history, query)
    shown = facts.items(history, events)
    named = facts.names(history, shown)
    return {
        "runs": facts.grouped(shown, named, flat=query.flat),
        "names": named,
        "gap": None,
        "older": events[-1].name if events and (more or query.before) else None,
        "newer": events[0].name if events and (query.after or (query.before and more)) else None,
    }


def _filters(rows: str) -> Timeline:
    """The query of a page's table; InvalidRequest where it is none."""
    fields: dict[str, Any] = {}
    for name, value in parse_qsl(rows):
        if name in ("kind", "actor"):
            fields.setdefault(name, []).append(value)
        else:
            fields[name] = value
    try:
        return Timeline.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(first_problem(error.errors())[0], param="rows") from error
