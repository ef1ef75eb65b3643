"""Which models and parameters there are."""

from typing import Annotated, Any

from fastapi import Query, Request

from weightledger import DynamicModelManager
from weightledger.api.rest import paging, queries
from weightledger.api.rest.adapter_list import describe_adapters
from weightledger.api.rest.answers.models import Model, ModelList, ParameterList
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers
from weightledger.api.rest.model_selection import resolve


def router(manager: DynamicModelManager) -> Declared:
    """The OpenAI model list, and the parameters of the served model."""
    routes = Declared(prefix="/v1/models", tags=["models"])

    @routes.get("", responses=answers(ModelList))
    def list_models() -> dict[str, Any]:
        """The served model and its adapters, as a list."""
        loaded = describe_adapters(manager)
        return {"object": "list", "data": [_described(manager), *loaded.values()]}

    @routes.get("/parameters", responses=answers(ParameterList))
    def list_parameters(query: Annotated[queries.PageQuery, Query()]) -> dict[str, Any]:
        """Every tensor at the head, by name; the cursor is the name."""
        listed = manager.log.history.parameters(manager.log.live.state)
        after, before, limit = query.after, query.before, query.limit
        chosen = [
            p
            for p in listed
            if (after is None or p.name > after) and (before is None or p.name < before)
        ]
        has_more = len(chosen) > limit
        chosen = chosen[-limit:] if before is not None and after is None else chosen[:limit]
        items = [
            {
                "name": p.name,
                "object": "parameter",
                "dtype": p.spec.dtype,
                "shape": list(p.spec.shape),
                "digest": p.digest.hex(),
                "update_count": p.update_count,
            }
            for p in chosen
        ]
        return paging.page(items, "name", has_more=has_more)

    return routes


def by_name(manager: DynamicModelManager) -> Declared:
    """`/v1/models/{model}`, to be included after every static name below `/v1/models`."""
    routes = Declared(prefix="/v1/models", tags=["models"])

    @routes.get("/{model:path}", responses=answers(Model))
    def get_model(request: Request, model: str) -> dict[str, Any]:
        """One model of the list."""
        name = resolve(manager, model).name
        queries.check_known(request)
        return describe_adapters(manager).get(name) or _described(manager)

    return routes


def _described(manager: DynamicModelManager) -> dict[str, Any]:
    registered = manager.log.history.require(0)
    return {
        "id": manager.model_name,
        "object": "model",
        "created": registered.recorded_at // 1_000_000,
        "owned_by": "weightledger",
    }
