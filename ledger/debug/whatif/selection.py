"""Which events a what-if leaves out: by name, by who wrote them, by the rule that did."""

from collections.abc import Sequence
from dataclasses import dataclass

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import (
    ADAPTER_LOADED,
    ADAPTER_UNLOADED,
    REGISTERED,
    ROLLED_BACK,
    STATE_CHANGING,
    UPDATED,
    Event,
)
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History
from weightledger.ledger.store import EventFilter

ACTOR, RULE = "actor:", "rule:"


@dataclass(frozen=True, slots=True)
class Selected:
    """The events to leave out, ascending, and all state changes from the first of them to the
    position, in order."""

    without: tuple[Event, ...]
    way: tuple[int, ...]

    @property
    def base(self) -> int:
        """The state before the first of them."""
        parent = self.without[0].parent
        assert parent is not None
        return parent


def require_list(names: object) -> None:
    """InvalidRequest for a string by itself, which would be taken letter by letter."""
    if isinstance(names, str):
        raise InvalidRequest(
            f"without must be a list of events, such as [{names!r}], not one string",
            param="without",
        )


def select(
    history: History, at: Position, names: Sequence[str], only_after: str | None = None
) -> Selected:
    """The events that `names` mean: positions, `actor:NAME` and `rule:ID`.

    With `only_after` those at or before that position stay. Raises NotFound for a name that names
    nothing, InvalidRequest for an event that is no part of the state, and where none is left.
    """
    require_list(names)
    if not names:
        raise InvalidRequest("say which events to leave out", param="without")
    after = -1 if only_after is None else history.resolve(only_after).node
    wanted: dict[int, Event] = {}
    single: dict[int, str] = {}
    for name in names:
        if name.startswith((ACTOR, RULE)):
            wanted |= {event.seq: event for event in _of(history, name, at.node)}
            continue
        event = history.event(name)
        if event.kind not in STATE_CHANGING or event.kind in (REGISTERED, ROLLED_BACK):
            raise InvalidRequest(
                f"{event.name} ({event.kind}) is no update that could be left out; name an update "
                "or an adapter that was loaded or unloaded",
                param="without",
            )
        wanted[event.seq] = event
        single[event.seq] = name
    way = _way(history, at.node, min(wanted, default=at.node))
    on_way = set(way)
    for seq, name in single.items():
        if seq not in on_way:
            raise InvalidRequest(
                f"{name} is no part of the state at {at.text}: it came later, or was rolled back",
                param="without",
            )
    kept = sorted(seq for seq in wanted if seq in on_way and seq > after)
    if not kept:
        raise InvalidRequest(
            f"none of {', '.join(names)} is part of the state at {at.text}"
            + ("" if only_after is None else f" and came after {only_after}"),
            param="without",
        )
    events = tuple(wanted[seq] for seq in kept)
    return Selected(events, tuple(seq for seq in way if seq >= kept[0]))


def _way(history: History, node: int, first: int) -> list[int]:
    """The state changes that led to a node, from `first` on, in order."""
    way: list[int] = []
    at: int | None = node
    while at is not None and at >= first:
        way.append(at)
        at = history.lineage.parent(at)
    return way[::-1]


def _of(history: History, name: str, last: int) -> list[Event]:
    kind, _, value = name.partition(":")
    if kind == "actor":
        kinds = [UPDATED, ADAPTER_LOADED, ADAPTER_UNLOADED]
        return history.events(EventFilter(kinds=kinds, actors=[value], max_seq=last))
    events = history.events(EventFilter(kinds=[UPDATED], max_seq=last))
    return [event for event in events if (event.body.get("rule") or {}).get("id") == value]
