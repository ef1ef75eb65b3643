"""Commands: what can be asked of a log, as data.

A command says what is wanted, who asks and on what condition; it holds no code and knows no state
of the model, so it can be queued, sent, approved later or tried on another state. Whoever asks
(REST, the command line, a program) builds the same ones, and `writing.handlers` says what each
does. `digest` identifies the canonical request: it is in stored headers, and a retry with an old
idempotency key is compared with it, so what it is taken over never changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from weightledger.ledger import events
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events.bodies import Observed
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.writing.caller import ANYONE, Caller

MAX_DESCRIPTION = 500


class Command(Protocol):
    """One write that is asked for."""

    @property
    def caller(self) -> Caller:
        """Who asks, and on what condition."""

    @property
    def metadata(self) -> str | None:
        """What the caller wants kept beside the event: a JSON object as canonical text."""

    @property
    def digest(self) -> bytes | None:
        """The digest of the canonical request, 32 bytes; None for what is never retried."""


@dataclass(frozen=True, slots=True)
class Record:
    """Make the weights what they have become elsewhere. `tensors` have the model's bare names.

    `unwrapped` are the parts that were taken out of the names, such as "module.".
    """

    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    caller: Caller = ANYONE
    metadata: str | None = None
    unwrapped: tuple[str, ...] = ()

    @property
    def digest(self) -> bytes | None:
        if self.caller.idempotency_key is None:  # hashing the whole model is for retries only
            return None
        digests = {name: content_digest(lanes(one)).hex() for name, one in self.tensors.items()}
        return command_digest("record", {"tensors": digests, "metadata": self.metadata})


@dataclass(frozen=True, slots=True)
class CreateVersion:
    """Name the current state; version 0 is named first. The description has 1 to 500 characters.

    Without `performance_metrics` the version gets what is known of the live state.
    """

    description: str
    caller: Caller = ANYONE
    performance_metrics: Mapping[str, float] | None = None
    metadata: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_description(self.description)

    @property
    def digest(self) -> bytes:
        return command_digest("create_version", {"description": self.description})


@dataclass(frozen=True, slots=True)
class CreateInitialVersion:
    """Name the state the model was registered with, v0, unless it is named already."""

    description: str = "Initial version"
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_description(self.description)

    @property
    def digest(self) -> bytes:
        return command_digest("create_initial_version", {"description": self.description})


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep a version's name on the list, or with `pinned` False let it be retired again."""

    version_id: str
    pinned: bool = True
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    @property
    def kind(self) -> str:
        """The kind of its event."""
        return events.VERSION_PINNED if self.pinned else events.VERSION_UNPINNED

    @property
    def digest(self) -> bytes:
        return command_digest(self.kind, {"version_id": self.version_id})


@dataclass(frozen=True, slots=True)
class PlaceHold:
    """Keep a version, its state included, until this hold is released; the caller says why."""

    version_id: str
    caller: Caller
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        return command_digest(events.HOLD_PLACED, {"version_id": self.version_id})


@dataclass(frozen=True, slots=True)
class Release:
    """End a hold; the caller says why."""

    hold_id: str
    caller: Caller
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        return command_digest(events.HOLD_RELEASED, {"hold_id": self.hold_id})


@dataclass(frozen=True, slots=True)
class Redact:
    """Take texts (actor, reason, metadata) away from events, by their seqs."""

    events: tuple[int, ...]
    texts: tuple[str, ...]
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        asked = {"events": list(self.events), "texts": list(self.texts)}
        return command_digest(events.REDACTED, asked)


@dataclass(frozen=True, slots=True)
class Retire:
    """Take a version's name off the list; `cause` is "manual" where somebody asks for it."""

    version_id: str
    caller: Caller = ANYONE
    cause: str = "manual"
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        return command_digest(events.VERSION_RETIRED, {"version_id": self.version_id})


@dataclass(frozen=True, slots=True)
class RollBack:
    """Move the model to the state a position names, bit for bit.

    `why` and `evidence` are the event's reason and evidence where a policy asks.
    """

    to: str
    caller: Caller = ANYONE
    cause: str = "manual"
    why: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        return command_digest("rollback", {"to": self.to})


@dataclass(frozen=True, slots=True)
class Observe:
    """Record what became known of a state change; see `events.bodies.Observed`."""

    body: Observed
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        # Not of the evidence: what was measured is another each time it is asked for.
        return command_digest("observe", {"of": self.body.of, "verdict": self.body.verdict})


@dataclass(frozen=True, slots=True)
class ChangePolicy:
    """Record which policy rules from here on, unless it did already."""

    policy: str
    rules: Mapping[str, Any]
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        return command_digest("change_policy", {"policy": self.policy, "rules": dict(self.rules)})


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Serve the LoRA adapter in a folder under a name, beside the base.

    The folder is as PEFT saves it, in safetensors form. With `inplace` it takes the place of an
    adapter of that name. `folder` is what was read of it before the command queued.
    """

    name: str
    path: str | Path
    inplace: bool = False
    caller: Caller = ANYONE
    folder: object = field(default=None, compare=False, repr=False)
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        asked = {"adapter": self.name, "path": str(self.path), "inplace": self.inplace}
        return command_digest("load_adapter", asked)


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Stop serving an adapter."""

    name: str
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        return command_digest("unload_adapter", {"adapter": self.name})


@dataclass(frozen=True, slots=True)
class MergeAdapter:
    """Add an adapter to the base weights, and with `unload` take it off, as one event."""

    name: str
    unload: bool = True
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        return command_digest("merge_adapter", {"adapter": self.name, "unload": self.unload})


def check_description(description: str) -> None:
    """Raise InvalidRequest unless it is a string of 1 to 500 characters."""
    if not isinstance(description, str) or not 1 <= len(description) <= MAX_DESCRIPTION:
        got = len(description) if isinstance(description, str) else type(description).__name__
        raise InvalidRequest(
            f"description must have 1 to {MAX_DESCRIPTION} characters, got {got}",
            param="description",
        )


def command_digest(operation: str, fields: Mapping[str, Any]) -> bytes:
    """The digest of a canonical request: 32 bytes; `fields` are JSON."""
    return content_digest(canonical({"operation": operation, **fields}))
