"""Adapters as the OpenAI model list shows them."""

from typing import Any

from weightledger import DynamicModelManager
from weightledger.ledger import adapters
from weightledger.ledger.events import ADAPTER_LOADED
from weightledger.ledger.store import EventFilter
from weightledger.ledger.writing.handlers.adapters import digest_of


def describe_adapters(manager: DynamicModelManager) -> dict[str, dict[str, Any]]:
    """The live adapters by name; `created` and `root` are of the newest event that loaded them.

    A rollback may have brought back one that another of its name had replaced: events are told
    apart by the digest of what they loaded.
    """
    digests = manager.log.live.state.digests
    loaded = {name: digest_of(name, digests) for name in adapters.names(digests)}
    described: dict[str, dict[str, Any]] = {}
    if not loaded:
        return described
    for event in manager.log.history.events(EventFilter(kinds=[ADAPTER_LOADED])):
        name = event.body["adapter"]
        if name not in described and loaded.get(name) == event.body["digest"]:
            described[name] = {
                "id": name,
                "object": "model",
                "created": event.recorded_at // 1_000_000,
                "owned_by": "weightledger",
                "root": event.body["path"],
                "parent": manager.model_name,
            }
    return dict(sorted(described.items()))
