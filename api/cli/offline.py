"""Writing to a database that no server serves, as a server would.

The configured evaluator judges candidates where there is one; where there is none, that is said on
stderr and in the event.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from weightledger import Caller, DynamicModelManager, IncrementalUpdateRequest, Ledger, StateEngine
from weightledger.api.cli import output
from weightledger.api.cli.local import choose_model, require_ledger
from weightledger.api.items import hold_item
from weightledger.api.server.loading import configured
from weightledger.api.server.settings import Settings
from weightledger.ledger.debug.whatif.adopting import adopt_command
from weightledger.ledger.history import holds
from weightledger.ledger.monitoring.evaluators.registry import evaluator_of
from weightledger.ledger.writing.commands import Pin, PlaceHold, Release, Retire
from weightledger.ledger.writing.recording import record_command

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Offline:
    """One model of a database, written to by this process; the answers are the server's."""

    manager: DynamicModelManager
    caller: Caller

    def update(self, body: Item) -> Item:
        """What `POST /v1/models/incremental_update` does."""
        request = IncrementalUpdateRequest(
            **body, actor=self.caller.actor, reason=self.caller.reason
        )
        event = asyncio.run(self.manager.update(request))
        return self.manager.update_result(event)

    def record(self, tensors: Mapping[str, Tensor], metadata: Item) -> Item:
        """Record a whole checkpoint, by comparing it with the head."""
        log = self.manager.log
        command = record_command(
            tensors, log.specs, log.first_names, self.caller, json.dumps(metadata, sort_keys=True)
        )
        event = asyncio.run(self.manager.execute(command))
        return {**self.manager.update_result(event), "changed": len(event.changes)}

    def create_version(self, description: str) -> str:
        """What `POST /v1/models/create_version` does; the version's id."""
        return asyncio.run(self.manager.create_version(description, caller=self.caller))

    def pin(self, version_id: str, pinned: bool) -> None:
        """What `POST /v1/models/versions/{id}/pin` does."""
        asyncio.run(self.manager.execute(Pin(version_id, pinned, self.caller)))

    def retire(self, version_id: str) -> None:
        """What `POST /v1/models/versions/{id}/retire` does."""
        asyncio.run(self.manager.execute(Retire(version_id, self.caller)))

    def hold(self, version_id: str, reason: str) -> Item:
        """What `POST /v1/models/holds` does."""
        return self._held(PlaceHold(version_id, replace(self.caller, reason=reason)))

    def release(self, hold_id: str, reason: str) -> Item:
        """What `POST /v1/models/holds/{id}/release` does."""
        return self._held(Release(hold_id, replace(self.caller, reason=reason)))

    def _held(self, command: PlaceHold | Release) -> Item:
        event = asyncio.run(self.manager.execute(command))
        return hold_item(holds.find(self.manager.log.history.store, f"hold_{event.number}"))

    def rollback(self, position: str) -> int:
        """What `POST /v1/models/rollback` does; the seq of its event."""
        return asyncio.run(self.manager.rollback(position, caller=self.caller)).seq

    def adopt(self, asked: Item) -> Item:
        """What `POST /v1/models/adopt_what_if` does."""
        import weightledger.rules  # noqa: F401  which says how learning is worked out again

        command = adopt_command(self.manager.log.history, **asked, caller=self.caller)
        return self.manager.update_result(asyncio.run(self.manager.execute(command)))


@contextlib.contextmanager
def offline(settings: Settings, model: str | None, caller: Caller) -> Iterator[Offline]:
    """A model of the database, as it is: nothing is created or upgraded."""
    require_ledger(settings)
    config = settings.update_config()
    with Ledger.open(config.url, upgrade=False) as ledger:
        name = choose_model(ledger.models(), model)
        served = configured(settings, name)
        engine = served.engine if served else StateEngine(ledger.history(name).weights("head"))
        asked = evaluator_of(settings.evaluator, engine, settings.evaluator_timeout_s)
        evaluator = asked or (served.evaluator if served else None)
        if evaluator is None:
            output.note(f"offline: no evaluator is configured for {name}: nothing is evaluated")
        else:
            output.note(f"offline: the evaluator of {name} judges updates, as in a server")
        manager = DynamicModelManager(
            engine,
            name,
            settings.lora_config(),
            config=config,
            evaluator=evaluator,
            ledger=ledger,
            on_mismatch="ledger",
        )
        try:
            yield Offline(manager, caller)
        finally:
            manager.close()
