"""The staged state: the newest state there is, committed or about to be.

Proposals are worked out on it. While several events wait to be appended in one transaction, each is
worked out on the one before; readers go on seeing the committed state, and a failed append throws
the waiting ones away.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from weightledger.ledger.engines import Engine
from weightledger.ledger.events import Event
from weightledger.ledger.events.changes import TensorChange
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.projector import Changes, LiveState, Projector
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.writing.encoding import Recorded
from weightledger.ledger.writing.policy import Policy


class Staged:
    """The newest state of one log, and what it is worked on with; used by one writer at a time.

    `history` reads the log, `policy` is what its writes meet.
    """

    def __init__(self, history: History, projector: Projector, policy: Policy) -> None:
        self.history = history
        self.policy = policy
        self._projector = projector
        self._staged: LiveState | None = None
        self._weights: dict[str, torch.Tensor] = {}
        self._chunks: dict[str, bytearray] = {}
        self._checksums: dict[str, bytearray] = {}

    @property
    def engine(self) -> Engine:
        """What holds the live weights."""
        return self._projector.engine

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The model's tensors by bare name."""
        return self._projector.specs

    @property
    def live(self) -> LiveState:
        """The newest event, its state, and the tensors beside the weights."""
        return self._staged or self._projector.live

    @property
    def committed(self) -> LiveState:
        """What is shown to readers; may be asked for without the writer's lock."""
        return self._projector.live

    @property
    def pending(self) -> bool:
        """Whether events are waiting to be appended."""
        return self._staged is not None

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor with a full state name; read only."""
        if name.startswith(WEIGHTS):
            staged = self._weights.get(name)
            return self._projector.tensor(name) if staged is None else staged
        return self.live.auxiliary[name]

    def weight(self, bare: str) -> torch.Tensor:
        """The weight with a bare name; read only."""
        return self.tensor(WEIGHTS + bare)

    def chunks(self, name: str) -> bytearray:
        """The chunk digests of a weight."""
        return self._chunks.get(name) or self._projector.chunks(name)

    def checksums(self, name: str) -> bytearray | None:
        """The checksums of a weight's chunks, None where they are not known."""
        if name in self._chunks:
            return self._checksums.get(name)
        return self._projector.checksums(name)

    def make_room(self) -> None:
        """Wait until one more version may be held; what is staged already needs no other.

        Unavailable when readers do not let go in time.
        """
        if not self.pending:
            self._projector.make_room()

    def check_untouched(self, weights: Collection[str] | None = None) -> None:
        """Raise WeightsChangedOutside if a live tensor was written since it was published.

        With `weights`, by bare name, those are looked at and a few of the others in turn.
        """
        self._projector.engine.check_untouched(weights)

    def changed(
        self,
        recorded: Sequence[Recorded],
        moved: Sequence[TensorChange],
        auxiliary: Mapping[str, torch.Tensor | None],
    ) -> Changes:
        """The next state: weights recorded, and tensors beside them changed as `moved` says."""
        live = self.live
        kept = [one for one in recorded if one.change.changed]
        beside = live.auxiliary
        if not moved:
            after = {one.change.name: one.change.after for one in kept}
            state = live.state.with_digests({n: d for n, d in after.items() if d is not None})
        else:
            state = live.state.moved(
                {
                    one.change.name: (live.state.specs[one.change.name], one.change.after)
                    for one in kept
                }
                | {change.name: (change.spec_after, change.after) for change in moved}
            )
            new = {change.name: auxiliary[change.name] for change in moved}
            beside = {name: t for name, t in {**beside, **new}.items() if t is not None}
        return Changes(
            weights={one.change.name: one.after for one in kept},
            chunks={one.change.name: one.chunks for one in kept},
            state=state,
            auxiliary=beside,
            checksums={one.change.name: one.checksums for one in kept if one.checksums},
        )

    def prepare(self, changes: Changes) -> Changes:
        """The same with the engine's next version, built from the committed one."""
        assert not self.pending, "a candidate can be looked at only when nothing waits before it"
        return self._projector.prepare(changes)

    def move(self, node: int, expected: bytes) -> Changes:
        """The way to another node, rebuilt and verified but not yet shown."""
        assert not self.pending, "a move starts from the committed state"
        return self._projector.move(self.history, node, expected)

    def stage(self, event: Event, changes: Changes | None) -> None:
        """Let the next proposal be worked out on the state after `event`."""
        live = self.live
        if changes is None:
            self._staged = replace(live, head=event)
            return
        self._staged = LiveState(event, changes.state, changes.auxiliary)
        self._weights.update(changes.weights)
        self._chunks.update(changes.chunks)
        for name in changes.chunks:
            self._checksums.pop(name, None)
        self._checksums.update(changes.checksums)

    def gathered(self) -> Changes:
        """All that the staged events change, ready to be shown at once."""
        live = self.live
        changes = Changes(
            dict(self._weights),
            dict(self._chunks),
            live.state,
            live.auxiliary,
            checksums=dict(self._checksums),
        )
        return self._projector.prepare(changes)

    def clear(self) -> None:
        """Forget what was staged: it was appended and shown, or will not be."""
        self._staged = None
        self._weights, self._chunks, self._checksums = {}, {}, {}
