"""The staged state: the newest state there is, committed or about to be.

Proposals are worked out on it. While several events wait to be appended in one transaction, each is
worked out on the one before; readers go on seeing the committed state, and a failed append throws
the waiting ones away.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from msgspec.structs import replace

from weightledger.ledger.engines import Engine
from weightledger.ledger.events import Event
from weightledger.ledger.events.changes import TensorChange
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.change import Change, HashedTensor
from weightledger.ledger.projection.projector import LiveState, Projector
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
        self._weights: dict[str, HashedTensor] = {}

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
            return self._projector.tensor(name) if staged is None else staged.tensor
        return self.live.auxiliary[name]

    def weight(self, bare: str) -> torch.Tensor:
        """The weight with a bare name; read only."""
        return self.tensor(WEIGHTS + bare)

    def hashed(self, name: str) -> HashedTensor:
        """The weight with a full state name and what it hashes to; read only."""
        return self._weights.get(name) or self._projector.hashed(name)

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
    ) -> Change:
        """The next state: weights recorded, and tensors beside them changed as `moved` says."""
        live = self.live
        kept = [(one, new) for one, new, _ in recorded if one.changed]
        beside = live.auxiliary
        if not moved:
            after = {one.name: one.after for one, _ in kept if one.after is not None}
            state = live.state.with_digests(after)
        else:
            specs = live.state.specs
            state = live.state.moved(
                {one.name: (specs[one.name], one.after) for one, _ in kept}
                | {one.name: (one.spec_after, one.after) for one in moved}
            )
            new = {one.name: auxiliary[one.name] for one in moved}
            beside = {name: t for name, t in {**beside, **new}.items() if t is not None}
        return Change({one.name: new for one, new in kept}, state, beside)

    def prepare(self, change: Change) -> Change:
        """The same with the engine's next version, built from the committed one."""
        assert not self.pending, "a candidate can be looked at only when nothing waits before it"
        return self._projector.prepare(change)

    def move(self, node: int, expected: bytes) -> Change:
        """The way to another node, rebuilt and verified but not yet shown."""
        assert not self.pending, "a move starts from the committed state"
        return self._projector.move(self.history, node, expected)

    def stage(self, event: Event, change: Change | None) -> None:
        """Let the next proposal be worked out on the state after `event`."""
        if change is None:
            self._staged = replace(self.live, head=event)
            return
        self._staged = LiveState(event, change.state, change.auxiliary)
        self._weights.update(change.weights)

    def gathered(self) -> Change:
        """All that the staged events change, ready to be shown at once."""
        live = self.live
        return self._projector.prepare(Change(dict(self._weights), live.state, live.auxiliary))

    def clear(self) -> None:
        """Forget what was staged: it was appended and shown, or will not be."""
        self._staged = None
        self._weights = {}
