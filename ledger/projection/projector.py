"""The projector: from the log to live weights.

It knows which event the live weights show, verifies the way there, and brings them to the head of
the log: at start, after another process wrote, and after each local append. It is the only place
that publishes weights.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial

import msgspec
import numpy as np
import torch

from weightledger.ledger import interrupts
from weightledger.ledger.adapters.adapter import all_of
from weightledger.ledger.config import HELD_VERSIONS_WAIT_S, MAX_HELD_VERSIONS
from weightledger.ledger.engines import Engine, HeldVersion, RemoteEngine, SeveralVersions
from weightledger.ledger.engines.adapted import AdapterEngine
from weightledger.ledger.errors import (
    Conflict,
    CorruptLedger,
    Unavailable,
    WeightsChangedOutside,
)
from weightledger.ledger.events import Draft, Event
from weightledger.ledger.events.bodies import Registered
from weightledger.ledger.history import lineage
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.replay import Move, Sources, replay
from weightledger.ledger.projection.change import Change, HashedTensor
from weightledger.ledger.projection.following import Ahead, News, leads_to, straight_on
from weightledger.ledger.projection.way import Way
from weightledger.ledger.store.payloads import Portion
from weightledger.ledger.tensors.digest import chunk_digests, hash_many, root
from weightledger.ledger.tensors.lanes import clone, lanes
from weightledger.ledger.tensors.memory import keep_for
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.tensors.state import StateDigest

logger = logging.getLogger(__name__)


class LiveState(msgspec.Struct, frozen=True):
    """What is live: the last event shown, its state, and the tensors beside the weights.

    `auxiliary` maps full names (`rule/…`, `adapter/…`) to tensors, which nobody writes to.
    """

    head: Event
    state: StateDigest
    auxiliary: Mapping[str, torch.Tensor] = msgspec.field(default_factory=dict)


class Projector:
    """LiveState weights of one engine, kept at a position of one log."""

    def __init__(
        self,
        engine: Engine,
        pool: Executor,
        *,
        max_held_versions: int = MAX_HELD_VERSIONS,
        held_versions_wait_s: float = HELD_VERSIONS_WAIT_S,
    ) -> None:
        self.engine = engine
        self.remote = engine if isinstance(engine, RemoteEngine) else None
        self._adapted = engine if isinstance(engine, AdapterEngine) else None
        self.specs: Mapping[str, TensorSpec] = engine.specs()
        keep_for(self, sum(spec.nbytes for spec in self.specs.values()))
        self._pool = pool
        self._max_held = max_held_versions
        self._held_wait_s = held_versions_wait_s
        self._live: LiveState | None = None
        # Of each live weight the chunk digests, and their checksums where they are known.
        self._hashes: dict[str, tuple[bytearray, bytearray | None]] = {}
        self._followed: list[Callable[[Event], None]] = []
        self._rehearsed: Change | None = None
        self.way = Way()

    def subscribe(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` once what others appended is visible, with the last event of it."""
        self._followed.append(listener)

    @property
    def attached(self) -> bool:
        """Whether the live weights stand at a position of a log."""
        return self._live is not None

    @property
    def live(self) -> LiveState:
        assert self._live is not None, "the projector is not attached to a log"
        return self._live

    def tensor(self, name: str) -> torch.Tensor:
        """The live tensor with a full state name."""
        if name.startswith(WEIGHTS):
            return self.engine.tensor(name.removeprefix(WEIGHTS))
        return self.live.auxiliary[name]

    def hashed(self, name: str) -> HashedTensor:
        """The live weight with a full state name and what it hashes to."""
        return HashedTensor(self.tensor(name), *self._hashes[name])

    # Start

    def genesis(self) -> tuple[Draft, StateDigest]:
        """The first event of a model that starts with the engine's weights."""
        state = self.hash_engine()
        body = Registered(len(state.specs), sum(spec.nbytes for spec in state.specs.values()))
        return Draft(body, state.value), state

    def adopt(
        self, event: Event, state: StateDigest, auxiliary: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Take the engine's weights, already hashed, as the state after `event`.

        `auxiliary` are the tensors of that state beside the weights.
        """
        self.show(event, Change({}, state, auxiliary or {}))

    # Afterwards

    def catch_up(self, history: History, to: int | None = None, news: News | None = None) -> Event:
        """Bring live weights to the head of the log, if another process moved it.

        With `to` they are brought to the state after that event, wherever the head is. `news` are
        the events after the last one shown, where they were read already.
        """
        before = self.live.head.seq
        event = self._catch_up(history, to, news)
        if event.seq != before:
            self.tell_followed(event)
        return event

    def go_on(self, history: History, ahead: Ahead) -> None:
        """Show what others appended, as a neighbour told of it."""
        if self.remote is not None:
            self.remote.converge()
        for event in ahead.events:
            history.learn(event)
        self._go_on(history, ahead.head, ahead)
        self.tell_followed(ahead.head)

    def tell_followed(self, event: Event) -> None:
        """Call those who `subscribe`: what others appended up to this event is visible."""
        for listener in self._followed:
            try:
                listener(event)
            except Exception:
                logger.exception("a listener failed on event %d of another writer", event.seq)

    def _catch_up(self, history: History, to: int | None, news: News | None) -> Event:
        if self.remote is not None:
            self.remote.converge()
        live = self.live
        if to is not None:
            return self._go(history, history.require(to))
        kept = self._rehearsed
        if news and kept is not None and leads_to(live.head, news, kept.state.value):
            self.forget()  # should it fail, the general way is next
            for event, _ in news:
                history.learn(event)
            self.make_room()
            self.engine.check_untouched({name.removeprefix(WEIGHTS) for name in kept.weights})
            self.show(news[-1][0], kept)
            logger.info("event %d of %s was prepared", news[-1][0].seq, history.model)
            return news[-1][0]
        ahead = straight_on(history, live.head, live.state, self.copy, news)
        read = None if not news else news[-1][0]
        head = ahead.head if ahead is not None else read or history.head()
        return self._go_on(history, head, ahead)

    def _go_on(self, history: History, head: Event, ahead: Ahead | None) -> Event:
        live = self.live
        if head.seq == live.head.seq:
            return head
        if head.node == live.head.node:
            self.show(head)
            return head
        self.make_room()
        if ahead is None or ahead.rebuilt is None:
            changes = self.move(history, head.node, head.state_after)
        else:
            new = ahead.rebuilt
            self.engine.check_untouched({name.removeprefix(WEIGHTS) for name in new.tensors})
            weights = _hashed(new.tensors, new.chunks)
            changes = self.prepare(Change(weights, new.state, live.auxiliary))
        self.show(head, changes)
        if ahead is not None:
            self.way.passed(ahead.events)
        logger.info("caught up with event %d of %s", head.seq, history.model)
        return head

    def _go(self, history: History, event: Event) -> Event:
        """Show the state after an event."""
        live = self.live
        if event.node == live.head.node:
            if event.seq != live.head.seq:
                self.show(event)
            return event
        self.make_room()
        self.show(event, self.move(history, event.node, event.state_after))
        logger.info("moved to the state after event %d of %s", event.seq, history.model)
        return event

    def check_live(self) -> None:
        """Look at every live tensor, as updates do at a few; WeightsChangedOutside names those
        that something else wrote. What a remote engine shows, following the log looks at.
        """
        if self.remote is None:
            self.engine.check_untouched()

    def move(self, history: History, node: int, expected: bytes) -> Change:
        """The live weights' way to another node, rebuilt and verified but not yet shown."""
        self.engine.check_untouched()
        live = self.live

        def along(base: StateDigest, path: lineage.Path) -> Change:
            if path.start == live.head.node:
                rebuilt = history.follow(base, self.copy, path, expected)
                return self.changes_to(
                    rebuilt.state, rebuilt.tensors, rebuilt.chunks, live.auxiliary
                )

            fetch = partial(history.anchored, path.start, base)
            told = "from event %d to %d by the snapshot at event %d"
            logger.info(told, live.head.node, node, path.start)
            rebuilt = history.follow(base, fetch, path, expected)
            changed = {
                name: rebuilt.tensors[name] if name in rebuilt.tensors else fetch(name)
                for name in rebuilt.state.specs
                if not rebuilt.state.same(live.state, name)
            }
            hashed = hash_many([lanes(tensor, n) for n, tensor in changed.items()], self._pool)
            chunks = dict(zip(changed, hashed, strict=True))
            return self.changes_to(rebuilt.state, changed, chunks, live.auxiliary)

        return history.ways.travel(node, along, live=(live.head.node, live.state))

    def prepare(self, change: Change) -> Change:
        """The same change with the engine's next version; everything that can fail fails here."""
        if change.candidate is not None:
            return change
        weights = {n.removeprefix(WEIGHTS): one.tensor for n, one in change.weights.items()}
        if self._adapted is not None:
            candidate = self._adapted.prepare_with(weights, all_of(change.auxiliary))
        else:
            candidate = self.engine.prepare(weights)
        return Change(change.weights, change.state, change.auxiliary, candidate)

    def rehearse(self, history: History, event: Event, payload: bytes, proposal: str) -> bytes:
        """Build the state that an event would lead to, which is not in the log, and have the engine
        prepare it; gives its digest, computed. Nothing of it is shown.

        A remote engine has its server try what the proposal of that id leads to. What was prepared
        is kept, one at a time, until something is shown or `forget` is called.

        Raises CorruptLedger where it comes to another state, Conflict unless the event is on what
        is live, and whatever the engine raises.
        """
        self.forget()
        live = self.live
        if event.parent != live.head.node:
            raise Conflict(f"the proposed event is on event {event.parent}, which is not live here")
        if self.remote is not None:
            self.remote.confirm()
        self.make_room()
        self.engine.check_untouched()
        sources = Sources(self.copy, lambda _: [Portion.whole(payload)], history.whole)
        moves = [Move(event, undo=False)]
        built = replay(live.state, moves, sources, event.state_after, history.pool)
        changes = self.changes_to(built.state, built.tensors, built.chunks, live.auxiliary)
        if self.remote is not None:
            self.remote.rehearse(proposal, seq=event.state_seq, digest=event.state_after)
        self._rehearsed = changes
        return built.state.value

    def forget(self) -> None:
        """Let go of what was rehearsed."""
        self._rehearsed = None

    def make_room(self) -> None:
        """Wait until one more version may be held; Unavailable if readers do not let go in time.

        For updates and for following other processes. A rollback takes no notice: being back at
        good weights is worth the memory of one more version.
        """
        if not self.engine.wait_for_readers(self._max_held - 1, self._held_wait_s):
            raise Unavailable(
                f"readers still hold {self.engine.held_versions()} past versions of the weights "
                f"and max_held_versions is {self._max_held}; retry when they are done"
            )

    def held(self, history: History, seq: int) -> HeldVersion:
        """A version of the state that a seq led to, to be leased beside the live one.

        It is live for a moment, so nobody may be served yet. For an engine that holds versions;
        NotFound, Pruned and CorruptLedger as for any rebuild.
        """
        event = history.require(seq)
        live = self.live
        changes = self.move(history, event.node, event.state_after)
        back = {name.removeprefix(WEIGHTS): self.tensor(name) for name in changes.weights}
        engine = self.engine
        assert isinstance(engine, SeveralVersions)
        with interrupts.held:  # what it shows in between is not what is live
            engine.publish(changes.prepared, seq=event.state_seq, digest=event.state_after)
            try:
                return engine.hold()
            finally:
                if self._adapted is not None:
                    again = self._adapted.prepare_with(back, all_of(live.auxiliary))
                else:
                    again = engine.prepare(back)
                engine.publish(again, seq=live.head.state_seq, digest=live.state.value)

    def show(self, event: Event, change: Change | None = None) -> None:
        """Make a committed event visible: one assignment in the engine."""
        if change is None:
            change = Change({}, self.live.state, self.live.auxiliary)
        if change.state.value != event.state_after:
            raise CorruptLedger(
                f"event {event.seq} leads to another state than was prepared", seq=event.seq
            )
        candidate = self.prepare(change).prepared
        with interrupts.held:  # what is shown is what we know of
            if self._live is None or change.state.specs is not self._live.state.specs:
                change.state.keep_tree()
            self.engine.publish(candidate, seq=event.state_seq, digest=event.state_after)
            self.forget()  # it was prepared on what was live until now
            for name, new in change.weights.items():
                self._hashes[name] = new.chunks, new.checksums
            self._live = LiveState(event, change.state, change.auxiliary)

    def note(self, event: Event) -> None:
        """Remember a committed event that changes no state."""
        self._live = LiveState(event, self.live.state, self.live.auxiliary)

    def copy(self, name: str, *, check: bool = True) -> torch.Tensor:
        """A CPU copy of a live tensor; with `check` it is what the log says it is."""
        made = clone(self.tensor(name))
        if not made.is_cpu:
            made = made.cpu()
        if check and root(chunk_digests(lanes(made, name))) != self.live.state.digests[name]:
            raise WeightsChangedOutside(
                f"live weights were changed without the ledger: {name.removeprefix(WEIGHTS)}"
            )
        return made

    def hash_live(self) -> StateDigest:
        """The state of the tensors that are served right now, hashed afresh.

        Those of a remote engine are the ledger's copy; the server is asked which it shows.
        """
        if self.remote is not None:
            self.remote.confirm()
        names = list(self.live.state.specs)
        hashed = hash_many([lanes(self.tensor(name), name) for name in names], self._pool)
        return self.live.state.with_digests(
            {name: root(chunks) for name, chunks in zip(names, hashed, strict=True)}
        )

    def changes_to(
        self,
        state: StateDigest,
        tensors: Mapping[str, torch.Tensor],
        chunks: Mapping[str, bytearray],
        before: Mapping[str, torch.Tensor],
    ) -> Change:
        """The way to `state`, whose new tensors are given; of those beside the weights, the
        others are as `before`. It is ready to be shown."""
        weights = {name: new for name, new in tensors.items() if name.startswith(WEIGHTS)}
        auxiliary = {
            name: tensors[name] if name in tensors else before[name]
            for name in state.specs
            if not name.startswith(WEIGHTS)
        }
        return self.prepare(Change(_hashed(weights, chunks), state, auxiliary))

    def hash_engine(self) -> StateDigest:
        """The state of the engine's own weights, hashed afresh."""
        specs = [
            TensorSpec(WEIGHTS + spec.name, spec.dtype, spec.shape) for spec in self.specs.values()
        ]
        hashed = hash_many(
            [lanes(self.tensor(spec.name), spec.name).view(np.uint8) for spec in specs], self._pool
        )
        of = zip(specs, hashed, strict=True)
        self._hashes = {spec.name: (chunks, None) for spec, chunks in of}
        aliases = {WEIGHTS + a: WEIGHTS + first for a, first in self.engine.aliases().items()}
        return StateDigest(
            specs, {name: root(chunks) for name, (chunks, _) in self._hashes.items()}, aliases
        )


def _hashed(
    tensors: Mapping[str, torch.Tensor], chunks: Mapping[str, bytearray]
) -> dict[str, HashedTensor]:
    return {name: HashedTensor(tensor, chunks[name]) for name, tensor in tensors.items()}
