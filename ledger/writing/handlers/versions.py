"""What naming states does: versions created, pinned and retired."""

from collections.abc import Mapping

from weightledger.ledger import events
from weightledger.ledger.errors import InvalidRequest, NotFound, Pruned
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import (
    NamedState,
    VersionCreated,
    VersionPinned,
    VersionRetired,
    VersionUnpinned,
)
from weightledger.ledger.history import holds, versions
from weightledger.ledger.writing.commands import CreateInitialVersion, CreateVersion, Pin, Retire
from weightledger.ledger.writing.proposed import ProposedEvent, stateless
from weightledger.ledger.writing.staged import Staged

_INITIAL = "Initial version"


def create(command: CreateVersion, staged: Staged) -> ProposedEvent:
    """A name for the current state, once the initial state has its own.

    The initial state is version 0 even where gc dropped what it needs. Then its name does not stay
    on the list, which holds only what can be restored.
    """
    head = staged.live.head
    if head.counts.versions == 0 and head.node != 0:
        return _named(staged, staged.history.require(0), _INITIAL, {}, more=True)
    just_named = staged.pending and head.kind == events.VERSION_CREATED
    if just_named and not staged.history.ways.restorable(0):
        return _retired(staged, head, more=True)
    metrics = command.performance_metrics
    if metrics is None:
        guard = staged.policy.guard
        metrics = {} if guard is None else guard.current()
    return _named(staged, head, command.description, metrics)


def create_initial(command: CreateInitialVersion, staged: Staged) -> ProposedEvent | Event:
    """Version 0, which may be there already; Pruned when its state cannot be restored any more."""
    history = staged.history
    known = history.store.by_number(events.VERSIONS, 0)
    if known is not None:
        return known
    if not history.ways.restorable(0):
        raise Pruned("gc dropped what the initial state needs, so it can be named no more", seq=0)
    return _named(staged, history.require(0), command.description, {})


def pin(command: Pin, staged: Staged) -> ProposedEvent:
    """Pin a listed version, or let go of it."""
    store = staged.history.store
    named = _version(staged, command.version_id)
    if not versions.is_listed(store, named):
        raise NotFound(f"Version {command.version_id} not found", param="version_id")
    assert named.number is not None
    kind = VersionPinned if command.pinned else VersionUnpinned
    return stateless(staged, kind(named.name, named.number), number=versions.next_pin(store))


def retire(command: Retire, staged: Staged) -> ProposedEvent:
    """Take a name off the list; NotFound when another writer already has."""
    store = staged.history.store
    named = _version(staged, command.version_id)
    if not versions.is_listed(store, named):
        raise NotFound(f"Version {named.name} is retired already", param="version_id")
    if named.number == staged.live.head.active:
        raise InvalidRequest(f"Version {named.name} is the active one", param="version_id")
    if versions.is_pinned(store, named):
        raise InvalidRequest(f"Version {named.name} is pinned", param="version_id")
    if named.number in holds.held_states(store):
        raise InvalidRequest(f"Version {named.name} is under legal hold", param="version_id")
    return _retired(staged, named)


def _version(staged: Staged, version_id: str) -> Event:
    """The event that named a version; NotFound for what is none."""
    named = staged.history.event(version_id)
    if named.kind != events.VERSION_CREATED:
        raise NotFound(f"Version {version_id} not found", param="version_id")
    return named


def _named(
    staged: Staged,
    of: Event,
    description: str,
    metrics: Mapping[str, float],
    *,
    more: bool = False,
) -> ProposedEvent:
    """A name for the state after an event."""
    names = NamedState(of.state_seq, of.node, of.state_after)
    return stateless(staged, VersionCreated(description, names, metrics), more=more)


def _retired(staged: Staged, named: Event, *, more: bool = False) -> ProposedEvent:
    return stateless(staged, VersionRetired(named.name), number=named.number, more=more)
