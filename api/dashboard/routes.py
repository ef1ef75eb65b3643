"""The dashboard's pages. Every one is a URL; what it shows the REST API gives as JSON."""

import json
from collections.abc import Callable, Coroutine
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from weightledger import DynamicModelManager
from weightledger.api.dashboard import facts
from weightledger.api.dashboard.sessions import LOGIN, STATIC, Sessions, cookie
from weightledger.api.dashboard.showing import HEADERS, names_of, page
from weightledger.api.rest import queries
from weightledger.api.rest.errors import error_response, openai_error
from weightledger.api.rest.keyring import Access, Keyring
from weightledger.api.rest.queries import first_problem
from weightledger.api.rest.routes.audit import listed
from weightledger.api.rest.scopes import admitted, includes, needs
from weightledger.ledger.access.keys import Scope
from weightledger.ledger.debug.drawn import diff_picture
from weightledger.ledger.errors import InvalidRequest, LedgerError, NotFound
from weightledger.ledger.events import KINDS
from weightledger.ledger.store import EventFilter

_FILES = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "acting.js": "text/javascript; charset=utf-8",
    "login.js": "text/javascript; charset=utf-8",
    "uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "uPlot.min.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_RECENT = 40
_LONG = 100
_MOVERS = 5
_MOST_ROWS = 500


class _Page(APIRoute):
    """A route whose errors are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await answer(request)
            except LedgerError as error:
                status, body = openai_error(error)
                message = body["error"]["message"]
            except RequestValidationError as error:
                status, message = 400, first_problem(error.errors())[0]
            return page(request, "error.html", status=status, message=message)

        return handle


def router(manager: DynamicModelManager, keyring: Keyring, sessions: Sessions) -> APIRouter:
    """All pages, the files they load, and the way in."""
    routes = APIRouter(include_in_schema=False)
    routes.include_router(_doors(keyring, sessions))
    routes.include_router(_pages(manager, sessions))
    return routes


def _doors(keyring: Keyring, sessions: Sessions) -> APIRouter:
    routes = APIRouter()

    @routes.get(LOGIN)
    def login(request: Request) -> Response:
        return page(request, "login.html")

    @routes.post(LOGIN, openapi_extra=needs("read"))
    async def enter(request: Request) -> Response:
        """Takes `{"key": …}`; the reply sets the session's cookie."""
        try:
            key = json.loads(await request.body())["key"]
        except (ValueError, KeyError, TypeError):
            key = None
        if not isinstance(key, str):
            raise InvalidRequest('expected {"key": "…"}', param="key")
        judged = await keyring.admit(key)
        if not isinstance(judged, Access):
            return error_response(judged.status, judged.message)
        return _with_cookie(request, sessions.open(key))

    @routes.post("/ui/logout", openapi_extra=needs("read"))
    async def leave(request: Request) -> Response:
        sessions.close(request.headers.get("cookie", ""))
        return _with_cookie(request, "")

    @routes.get(STATIC + "{name}")
    def file(name: str) -> Response:
        if name not in _FILES:
            raise NotFound(f"no file {name!r} here", param="name")
        headers = {**HEADERS, "cache-control": "no-cache"}
        return Response(_read(name), media_type=_FILES[name], headers=headers)

    return routes


def _with_cookie(request: Request, value: str) -> Response:
    base = str(request.scope.get("root_path", ""))
    secure = request.url.scheme == "https"
    headers = {"set-cookie": cookie(value, base, secure=secure), "cache-control": "no-store"}
    return JSONResponse({"success": True}, headers=headers)


def _pages(manager: DynamicModelManager, sessions: Sessions) -> APIRouter:
    routes = APIRouter(route_class=_Page, dependencies=[Depends(admitted)])
    log = manager.log
    history = log.history

    def show(request: Request, template: str, api: str, **more: Any) -> Response:
        """A page with the header; `api` is the call that gives the same as JSON."""
        session = sessions.find(request.headers.get("cookie", ""))
        scope: Scope = getattr(request.state, "scope", "admin")
        writes = getattr(request.app.state, "writes_enabled", True)
        return page(
            request,
            template,
            head=facts.header(manager),
            api=api,
            token=session.token if session else "",
            who=getattr(request.state, "actor", None),
            may_write=writes and includes(scope, "write"),
            asked=dict(request.query_params),
            **more,
        )

    def tree(request: Request, names: list[dict[str, Any]]) -> str:
        base = str(request.scope.get("root_path", "")).rstrip("/")
        return facts.tree(
            history, log.live.head.state_seq, names, f"{base}/ui/events/seq:", facts.TREE_STATES
        )

    @routes.get("/")
    def now(request: Request) -> Response:
        named = facts.versions(history)
        events = facts.items(history, history.events(EventFilter(), limit=_RECENT))
        return show(
            request,
            "now.html",
            "/v1/models/status",
            runs=facts.grouped(events, named),
            names=names_of(named),
            tree=tree(request, named),
            metrics=manager.metrics(),
            parameters=len(history.head_state().specs),
            database=history.store.home.version(),
            evaluator=manager.has_evaluator,
            trials=[one for one in facts.trials(manager) if one["status"] == "running"],
            approvals=[one for one in facts.approvals(log) if one["state"] == "pending"],
        )

    @routes.get("/ui/timeline", openapi_extra={"parameters": [dict(queries.METADATA_FILTER)]})
    def timeline(request: Request, query: Annotated[queries.Updates, Query()]) -> Response:
        if "limit" not in request.query_params:
            query = query.model_copy(update={"limit": _LONG})
        events, more = listed(history, query)
        named = facts.versions(history)
        return show(
            request,
            "timeline.html",
            _same("/v1/models/updates", request),
            runs=facts.grouped(facts.items(history, events), named),
            names=names_of(named),
            tree=tree(request, named),
            days=facts.days(history.activity(EventFilter())),
            kinds=KINDS,
            older=events[-1].name if events and (more or query.before) else None,
            newer=events[0].name if events and (query.after or (query.before and more)) else None,
            live=query.after is None and query.before is None,
        )

    @routes.get("/ui/rows", openapi_extra={"parameters": [dict(queries.METADATA_FILTER)]})
    def rows(request: Request, query: Annotated[queries.Updates, Query()]) -> Response:
        """The timeline's rows alone, for a page that is open."""
        events, _ = listed(history, query)
        named = facts.versions(history)
        runs = facts.grouped(facts.items(history, events), named)
        return page(request, "rows.html", runs=runs, names=names_of(named))

    @routes.get("/ui/events/{event_id}")
    def event(request: Request, event_id: str) -> Response:
        found = history.resolve(event_id).event if ":" in event_id else history.event(event_id)
        item = facts.items(history, [found])[0]
        changes = found.node == found.seq and found.parent is not None
        diff = (
            log.diff(f"seq:{found.parent}", f"seq:{found.seq}", ranks="none").to_json()
            if changes
            else None
        )
        return show(
            request,
            "event.html",
            f"/v1/models/updates/{found.name}",
            item=item,
            diff=diff,
            picture=diff_picture(diff) if diff else "",
            header=found.header.decode("utf-8", "replace"),
            parent=found.parent,
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
        return show(
            request,
            "compare.html",
            _same("/v1/models/diff", request) if from_ else "/v1/models/diff?from=seq:0",
            diff=diff,
            picture=diff_picture(drawn) if drawn else "",
            named=facts.versions(history),
            most=_MOST_ROWS,
        )

    @routes.get("/ui/parameters")
    def parameters(request: Request, text: str = "") -> Response:
        every = [one for one in history.parameters() if text.lower() in one.name.lower()]
        return show(
            request,
            "parameters.html",
            "/v1/models/parameters",
            parameters=every[:_MOST_ROWS],
            total=len(every),
        )

    @routes.get("/ui/parameters/{name:path}")
    def parameter(request: Request, name: str) -> Response:
        known = next((one for one in history.parameters() if one.name == name), None)
        if known is None:
            raise NotFound(f"Parameter {name!r} not found", param="name")
        escaped = "".join(f"[{mark}]" if mark in "*?[" else mark for mark in name)
        touched = history.events(EventFilter(parameter=escaped), limit=_LONG)
        return show(
            request,
            "parameter.html",
            f"/v1/models/updates?parameter={name}",
            parameter=known,
            events=facts.items(history, touched),
            names=names_of(facts.versions(history)),
        )

    @routes.get("/ui/versions")
    def versions(request: Request) -> Response:
        return show(
            request,
            "versions.html",
            "/v1/models/versions",
            versions=facts.versions(history),
        )

    @routes.get("/ui/rollback")
    def rollback(request: Request, to: str) -> Response:
        return show(
            request,
            "rollback.html",
            f"/v1/models/diff?from=head&to={to}",
            dialog=facts.rollback(manager, to),
            movers=_MOVERS,
        )

    @routes.get("/ui/metrics")
    def metrics(request: Request) -> Response:
        return show(
            request,
            "metrics.html",
            "/v1/models/metrics",
            current=manager.metrics(),
            trials=facts.trials(manager),
        )

    @routes.get("/ui/audit")
    def audit(request: Request) -> Response:
        counted = history.activity(EventFilter())
        by_actor: dict[str | None, int] = {}
        by_kind: dict[str, int] = {}
        for one in counted:
            by_actor[one.actor] = by_actor.get(one.actor, 0) + one.events
            by_kind[one.kind] = by_kind.get(one.kind, 0) + one.events
        return show(
            request,
            "audit.html",
            "/v1/models/activity",
            by_actor=sorted(by_actor.items(), key=lambda pair: -pair[1]),
            by_kind=sorted(by_kind.items(), key=lambda pair: -pair[1]),
            total=history.head().seq + 1,
            approvals=facts.approvals(log),
        )

    @routes.get("/ui/learning")
    def learning(request: Request) -> Response:
        touched = history.events(
            EventFilter(kinds=["updated", "update_rejected"]), limit=_MOST_ROWS
        )
        learnt = [item for item in facts.items(history, touched) if "learnt" in item["facts"]]
        return show(
            request,
            "learning.html",
            "/v1/models/updates?kind=updated",
            events=learnt[:_LONG],
        )

    return routes


def _same(path: str, request: Request) -> str:
    """The call of the REST API that takes the same query as a page."""
    return f"{path}?{request.url.query}" if request.url.query else path


@cache
def _read(name: str) -> bytes:
    return files("weightledger.api.dashboard").joinpath("static", name).read_bytes()
