"""The read side of one model's log: events, versions, and any state it ever had.

Works on the store alone: no engine and no server are needed. Rebuilding starts from the cheapest
place and reads what the path needs, never the whole log; it is in `history.rebuilding`, which is
imported when a state is first asked for, so that events are read without torch.
"""

import contextlib
import logging
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from weightledger.ledger.errors import CorruptLedger, NotFound
from weightledger.ledger.events import PRUNINGS, STATE_CHANGING, Event
from weightledger.ledger.events.bodies import Pruning, body_of
from weightledger.ledger.history import lineage, versions
from weightledger.ledger.history.density import Density, Pace
from weightledger.ledger.history.positions import Position, find_event, resolve
from weightledger.ledger.history.pruning import Prunings, fold
from weightledger.ledger.history.ways import Ways
from weightledger.ledger.store import DayCount, EventFilter, EventStore, StateChange
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.tensors.state import StateDigest

if TYPE_CHECKING:
    from torch import Tensor

    from weightledger.ledger.history.rebuilding import Fetch, States
    from weightledger.ledger.history.replay import RebuiltTensors

logger = logging.getLogger(__name__)

EVERYTHING = EventFilter()

_PAGE = 256  # events of a path that are held at a time
_LEARNT = 64  # events that are kept to be told of together


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the model at its head: `name` is bare, `update_count` counts its updates."""

    name: str
    spec: TensorSpec
    digest: bytes
    update_count: int


@dataclass(frozen=True, slots=True)
class KnownState:
    """A state at hand, from which a way may begin for nothing.

    `tensor(name)` gives a contiguous CPU copy of a tensor of `state`, which the caller may
    write to.
    """

    node: int
    state: StateDigest
    tensor: Callable[[str], "Tensor"]


class History:
    """One registered model's log, read."""

    def __init__(self, store: EventStore, pool: Executor) -> None:
        self.store = store
        self.blobs = store.home.blobs
        self.model = store.model
        self.pool = pool
        self._prunings: tuple[Pruning | None, ...] = ()
        self._pruned = Prunings()
        self._lineage = lineage.Lineage(store.state_changes)
        self._learnt: deque[Event] = deque()  # events that the lineage has not been told of yet
        self.ways = Ways(self)
        self._pace = Pace(store)

    # Events

    def head(self) -> Event:
        return self.store.head()

    def event(self, name: str) -> Event:
        """The event that a position names, see `history.positions`; NotFound otherwise."""
        return find_event(self.store, name)

    def events(
        self,
        where: EventFilter = EVERYTHING,
        *,
        limit: int | None = None,
        newest_first: bool = True,
    ) -> list[Event]:
        """Events that pass a filter, all of them unless `limit` is given."""
        most = sys.maxsize if limit is None else limit
        return self.store.select(where, limit=most, newest_first=newest_first)

    def activity(self, where: EventFilter = EVERYTHING) -> list[DayCount]:
        """How many events there were by day, kind and actor; newest days first.

        The filter's kinds, actors, times and seqs count; InvalidRequest for its other fields.
        """
        return self.store.activity(where)

    def resolve(self, position: str) -> Position:
        """The state a position names; NotFound otherwise. `history.positions` lists the forms."""
        return resolve(self.store, position)

    def version(self, name: str) -> versions.ModelVersion:
        """One listed version by any name that a position has; NotFound otherwise."""
        event = self.event(name)
        for one in self.versions():
            if one.version_id == event.name:
                return one
        raise NotFound(f"Version {name} not found", param="version_id")

    def last_versions(self, limit: int, below: int | None = None) -> list[versions.ModelVersion]:
        """The last `limit` listed versions, or those before the one with a number; newest first."""
        return versions.last_versions(self.store, limit, below)

    def naming(self, nodes: Sequence[int]) -> list[versions.ModelVersion]:
        """The listed versions that name the state of one of these nodes, newest first."""
        return versions.naming(self.store, nodes)

    def versions(self) -> list[versions.ModelVersion]:
        """Listed versions, newest first."""
        return versions.list_versions(self.store)

    def density(self, since: int | None = None, until: int | None = None) -> Density:
        """How many events there were over time, between two times (UTC microseconds); by default
        over all of the log. See `history.density`."""
        return self._pace.density(since, until)

    # States

    def state(self, position: str = "head") -> dict[str, "Tensor"]:
        """Every tensor at a position, by bare name, aliases included (as the same tensor).

        What is not a weight of the model keeps its full name: `adapter/…`, `rule/…`.
        """
        return {name.removeprefix(WEIGHTS): t for name, t in self._full_names(position).items()}

    def weights(self, position: str = "head") -> dict[str, "Tensor"]:
        """`state`, without the tensors beside the weights."""
        found = self._full_names(position).items()
        return {name.removeprefix(WEIGHTS): t for name, t in found if name.startswith(WEIGHTS)}

    def _full_names(self, position: str) -> dict[str, "Tensor"]:
        target = self.resolve(position)
        digest, tensors = self.rebuild(target.node, target.state)
        return {**tensors, **{alias: tensors[first] for alias, first in digest.aliases.items()}}

    def rebuild(
        self, node: int, expected: bytes, *, without: Collection[int] = ()
    ) -> tuple[StateDigest, dict[str, "Tensor"]]:
        """The whole state at a node from its cheapest snapshot, every tensor verified.

        The snapshots at the nodes `without` are not used.
        """
        return self._states.rebuild(node, expected, without)

    @cached_property
    def _states(self) -> "States":
        from weightledger.ledger.history.rebuilding import States

        return States(self)

    @property
    def pruned(self) -> Prunings:
        """What gc has dropped so far, as far as the events that say so are intact."""
        runs = self._prunings
        while True:
            pruning: Pruning | None = None
            try:
                run = self.store.by_number(PRUNINGS, len(runs))
                if run is None:
                    break
                pruning = body_of(run, Pruning)
            except CorruptLedger as error:
                logger.error("%s: %s; what gc dropped then is not known", self.model, error)
            runs = (*runs, pruning)
        if runs is not self._prunings:
            self._prunings, self._pruned = runs, fold(runs)
        return self._pruned

    def tensors(
        self,
        node: int,
        expected: bytes,
        names: Collection[str] | None = None,
        *,
        known: KnownState | None = None,
    ) -> dict[str, "Tensor"]:
        """Some tensors at a node (all by default), by full name, each verified.

        Reads their part of the cheapest snapshot, or of the state that is `known`, and the events
        that changed them since. Raises NotFound for a name that is not in the state.
        """
        return self._states.tensors(node, expected, names, known)

    def anchored(self, node: int, state: StateDigest, name: str, *, check: bool = True) -> "Tensor":
        """A tensor of the snapshot at a node; CorruptLedger names the node.

        Without `check` as it is stored, for who checks what comes of it.
        """
        return self._states.anchored(node, state, name, check=check)

    def follow(
        self,
        base: StateDigest,
        fetch: "Fetch",
        path: lineage.Path,
        expected: bytes,
        only: Collection[str] | None = None,
    ) -> "RebuiltTensors":
        """Replay a path from `base`, whose tensors `fetch` gives; with `only`, of the tensors with
        these full names. See `history.replay.replay`.

        What it comes to is verified. `fetch` is asked for tensors that are not checked first; where
        what comes of them is wrong, for checked ones, whose error tells what is damaged.
        """
        return self._states.follow(base, fetch, path, expected, only)

    def whole(self, spec: TensorSpec, digest: bytes) -> "Tensor":
        """A new tensor with the bytes of a blob; CorruptLedger when they are not there."""
        return self._states.whole(spec, digest)

    def require(self, seq: int) -> Event:
        """The event at a seq that the log refers to; CorruptLedger when it is not there."""
        event = self.store.event(seq)
        if event is None:
            raise CorruptLedger(f"event {seq} is missing from the log", seq=seq)
        return event

    def require_all(self, seqs: Sequence[int]) -> Iterator[Event]:
        """The events at these seqs, in the order given; close ones are read together."""
        for at in range(0, len(seqs), _PAGE):
            page = seqs[at : at + _PAGE]
            first, last = min(page), max(page)
            read: dict[int, Event] = {}
            if last - first < 2 * len(page):
                # An event between them that is damaged is not theirs: those are read singly.
                with contextlib.suppress(CorruptLedger):
                    for event in self.store.scan(first, last + 1):
                        read[event.seq] = event
            yield from (read.get(seq) or self.require(seq) for seq in page)

    def learn(self, event: Event) -> None:
        """Take note of an event that was read or written, for the ways that lead through it."""
        if event.kind in STATE_CHANGING:
            self._learnt.append(event)
            if len(self._learnt) >= _LEARNT:
                self._tell()

    @property
    def lineage(self) -> lineage.Lineage:
        """The tree of the log's states."""
        if self._learnt:
            self._tell()
        return self._lineage

    def _tell(self) -> None:
        """Tell the lineage what was learnt; of one after the other, who may never be asked for a
        way, that takes each time as long as for many."""
        while True:
            try:
                event = self._learnt.popleft()
            except IndexError:  # that was all, or another thread tells the rest
                return
            size, one_way = event.payload_size, int(event.forward_only)
            self._lineage.learn(
                StateChange(event.seq, event.kind, event.node, event.parent, size, one_way)
            )

    # Parameters

    def parameters(self, state: StateDigest | None = None) -> list[Parameter]:
        """The tensors of a state (the head's by default), by name, with their update counts."""
        state = state or self.head_state()
        counts: Mapping[str, int] = self.store.update_counts()
        weights = sorted(name for name in state.specs if name.startswith(WEIGHTS))
        return [
            Parameter(
                name=name.removeprefix(WEIGHTS),
                spec=state.specs[name],
                digest=state.digests[name],
                update_count=counts.get(name, 0),
            )
            for name in weights
        ]

    def head_state(self) -> StateDigest:
        """Names, specs and digests at the head; see `digests`."""
        return self.digests(self.head().node)

    def digests(self, node: int, known: KnownState | None = None) -> StateDigest:
        """Names, specs and digests at a node, from recorded digests alone (no tensor is read)."""

        def along(base: StateDigest, path: lineage.Path) -> StateDigest:
            state = base
            for undo, seqs in ((True, path.undo), (False, path.redo)):
                moved: dict[str, tuple[TensorSpec | None, bytes | None]] = {}
                for event in self.require_all(seqs):
                    for change in event.changes:
                        name = change.name
                        at = moved[name][0] if name in moved else state.specs.get(name)
                        spec, digest = change.specs(at, undo=undo)[1], change.ends(undo=undo)[1]
                        moved[name] = (spec, digest)
                state = state.moved(moved)
            return state

        return self.ways.travel(
            node, along, live=None if known is None else (known.node, known.state)
        )
