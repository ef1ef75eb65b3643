"""Updates through a learning rule."""

from typing import Any

from fastapi import Depends, Request, Response

from weightledger import Caller, Event
from weightledger.api.rest import schemas
from weightledger.api.rest.answers.writes import LearningReply
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers, json_body
from weightledger.api.rest.requests import body, caller, require_writes
from weightledger.ledger.errors import InvalidRequest
from weightledger.rules import (
    DiscountedUcb,
    DTESNDynamicIntegration,
    FeedbackThresholds,
    PairedGate,
)

Reply = dict[str, Any]

_EXAMPLE = {
    "parameter_name": "2.bias",
    "update_data": 0.001,
    "performance_context": {"accuracy_change": 0.01},
}


def router(integration: DTESNDynamicIntegration) -> Declared:
    """The route; `integration` holds what waits for a reward."""
    routes = Declared(prefix="/v1/models", tags=["dynamic updates"])
    selectors = {"feedback": FeedbackThresholds(), "bandit": DiscountedUcb()}

    @routes.post(
        "/enhanced_update",
        dependencies=[Depends(require_writes)],
        responses=answers(LearningReply, write=True),
        openapi_extra=json_body(schemas.EnhancedUpdateBody, _EXAMPLE, write=True),
    )
    async def enhanced_update(request: Request, response: Response) -> Reply:
        """Apply one update that a learning rule proposes.

        From `update_data`, a change asked for, or from `activities`, what the layer saw. An action
        whose reward comes later is sent with a `request_id` and no reward; then the reward alone.
        """
        sent = await body(request, schemas.ENHANCED)
        who = caller(request, integration.dynamic_manager.log.live.head)
        if sent.request_id is not None and sent.activities is not None:
            return _remember(integration, sent)
        event = await _event(integration, sent, who, selectors)
        response.headers["etag"] = f'"{event.state_seq}"'
        found = integration.result(event)
        learnt = found.pop("data")
        done = f"Successfully applied enhanced update to {event.body['parameter']}"
        return schemas.update_reply({**found, **learnt}, done)

    return routes


def _remember(integration: DTESNDynamicIntegration, sent: schemas.EnhancedUpdateBody) -> Reply:
    if sent.reward is not None:
        raise InvalidRequest("reward: send the action first, then its reward", param="reward")
    assert sent.request_id is not None and sent.activities is not None
    integration.remember(
        sent.request_id,
        _parameter(sent),
        sent.activities,
        rule=sent.rule or "reinforce",
        stream=sent.stream,
    )
    return {
        "success": True,
        "message": f"Waiting for the reward of {sent.request_id}",
        "data": {
            "request_id": sent.request_id,
            "waits_s": integration.dtesn_config.reward_ttl_s,
        },
    }


async def _event(
    integration: DTESNDynamicIntegration,
    sent: schemas.EnhancedUpdateBody,
    who: Caller,
    selectors: dict[str, Any],
) -> Event:
    options: dict[str, Any] = {
        "rule_config": sent.rule_config,
        "gate": PairedGate() if sent.gated else None,
        "batch_size": sent.batch_size,
        "caller": who,
        "metadata": sent.metadata,
    }
    rate, context = sent.learning_rate, sent.performance_context
    if sent.reward is not None:
        if sent.request_id is None:
            raise InvalidRequest("reward: say of which request_id", param="request_id")
        return await integration.calls.reward(
            sent.request_id,
            sent.reward,
            learning_rate=rate,
            performance_context=context,
            **options,
        )
    options["stream"] = sent.stream
    if sent.selector is not None:
        options["selector"] = selectors[sent.selector]
    given = [name for name in ("update_data", "activities") if getattr(sent, name) is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"send update_data, activities or a reward, got {' and '.join(given) or 'none'}",
            param="update_data",
        )
    name = _parameter(sent)
    if sent.activities is None:
        return await integration.calls.update(
            name, sent.update_data, rate, context, rule=sent.rule, **options
        )
    return await integration.calls.learn(
        name,
        sent.activities,
        rule=sent.rule,
        learning_rate=rate,
        performance_context=context,
        **options,
    )


def _parameter(sent: schemas.EnhancedUpdateBody) -> str:
    if sent.parameter_name is None:
        raise InvalidRequest("parameter_name: Field required", param="parameter_name")
    return sent.parameter_name
