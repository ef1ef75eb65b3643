"""What every page has: the header, what its reader may do, and an error that is a page."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from weightledger import DynamicModelManager
from weightledger.api.dashboard import facts
from weightledger.api.dashboard.sessions import Sessions, place_of
from weightledger.api.dashboard.showing import Url, page, url_of
from weightledger.api.dashboard.states import TreeLinks
from weightledger.api.rest.errors import openai_error
from weightledger.api.rest.queries import first_problem
from weightledger.api.rest.scopes import includes
from weightledger.ledger.access.keys import Scope
from weightledger.ledger.errors import LedgerError


class PageRoute(APIRoute):
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


@dataclass(frozen=True, slots=True)
class Shell:
    """Pages of one manager."""

    manager: DynamicModelManager
    sessions: Sessions

    def show(
        self, request: Request, template: str, api: str, *, known: int | None = None, **more: Any
    ) -> Response:
        """A page. `api` is the call of the REST API that gives the same as JSON, `known` the seq
        of the last event that was there before the page was read."""
        session = self.sessions.find(place_of(request.scope))
        writes = getattr(request.app.state, "writes_enabled", True)
        last = self.manager.log.history.head().seq if known is None else known
        return page(
            request,
            template,
            head=facts.header(self.manager),
            last=last,
            api=api,
            token=session.token if session else "",
            who=getattr(request.state, "actor", None),
            may_write=writes and self.includes(request, "write"),
            asked=dict(request.query_params),
            **more,
        )

    def includes(self, request: Request, scope: Scope) -> bool:
        """Whether who asks may do what a scope is for."""
        return includes(getattr(request.state, "scope", "admin"), scope)

    def tree(self, request: Request) -> str:
        """The tree of the last states, with links."""
        return facts.tree(self.manager.log, tree_links(url_of(request)))


def tree_links(url: Url) -> TreeLinks:
    """Where the states of a tree lead to."""
    return TreeLinks(
        url("/ui/events/seq:"), url("/ui/timeline") + "?flat=true&min_seq={first}&max_seq={last}"
    )


def same(path: str, request: Request) -> str:
    """The call of the REST API that takes the same query as a page."""
    sent = [pair for pair in request.query_params.multi_items() if pair[0] != "flat"]
    return Url("")(path) + (f"?{urlencode(sent)}" if sent else "")
