"""Routes as they are declared, until they are made for the one router they belong to.

FastAPI works every route out anew for each router that it is included in, which was two thirds of
what it takes to make the application.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, params
from fastapi.routing import APIRoute

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def named_by_function(route: APIRoute) -> str:
    """Operation ids that read well in a generated client."""
    return route.name


class Declared:
    """Routes below one prefix, in their order.

    `tags`, `dependencies`, `max_body_size` (bytes), `route_class` and `include_in_schema` hold for
    all of them; see `fastapi.APIRouter`. So does what `get` and `post` take for one.
    """

    def __init__(
        self,
        *,
        prefix: str = "",
        tags: Sequence[str] = (),
        dependencies: Sequence[params.Depends] = (),
        max_body_size: int | None = None,
        route_class: type[APIRoute] | None = None,
        include_in_schema: bool = True,
    ) -> None:
        self._prefix = prefix
        self._dependencies = dependencies
        self._all: dict[str, Any] = {
            "tags": [*tags],
            "max_body_size": max_body_size,
            "route_class_override": route_class,
            "include_in_schema": include_in_schema,
            "generate_unique_id_function": named_by_function,
        }
        self._routes: list[tuple[str, Callable[..., Any], dict[str, Any]]] = []

    def get(self, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        """Declare the decorated function as what answers GET."""
        return self._declaring("GET", path, options)

    def post(self, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        """Declare the decorated function as what answers POST."""
        return self._declaring("POST", path, options)

    def include(self, others: "Declared", dependencies: Sequence[params.Depends] = ()) -> None:
        """Take others in behind these, as they are, with further dependencies before their own.

        In a document they are only where these are, too.
        """
        for path, endpoint, options in others._routes:
            needed = [*dependencies, *options["dependencies"]]
            shown = self._all["include_in_schema"] and options["include_in_schema"]
            how = {**options, "dependencies": needed, "include_in_schema": shown}
            self._routes.append((path, endpoint, how))

    def add_to(self, router: APIRouter, dependencies: Sequence[params.Depends] = ()) -> None:
        """Make them, as routes of a router, with further dependencies before their own."""
        for path, endpoint, options in self._routes:
            needed = [*dependencies, *options["dependencies"]]
            router.add_api_route(path, endpoint, **{**options, "dependencies": needed})

    def _declaring(
        self, method: str, path: str, options: dict[str, Any]
    ) -> Callable[[Endpoint], Endpoint]:
        needed = [*self._dependencies, *options.pop("dependencies", ())]
        how = {**self._all, **options, "methods": [method], "dependencies": needed}

        def declare(endpoint: Endpoint) -> Endpoint:
            self._routes.append((self._prefix + path, endpoint, how))
            return endpoint

        return declare
