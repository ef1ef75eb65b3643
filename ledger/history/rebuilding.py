"""States rebuilt: tensors read from a snapshot and taken along a path, every one verified.

The half of `history.reader` that needs torch, imported when a state is first asked for.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import torch

from weightledger.ledger.errors import CorruptLedger, DamagedSnapshot, NotFound, Pruned
from weightledger.ledger.events import Event
from weightledger.ledger.history.lineage import Path
from weightledger.ledger.history.replay import Move, RebuiltTensors, Sources, replay
from weightledger.ledger.history.snapshot_tensors import load_tensor
from weightledger.ledger.parallel.shares import Share
from weightledger.ledger.store.payloads import ByteSpan, Portion, joined
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest

if TYPE_CHECKING:
    from weightledger.ledger.history.reader import History, KnownState

# Tensors of more bytes together are read by several threads: fewer cost less than handing them
# over. No more threads than these, since each holds a part in memory beside the tensors.
_FEW_BYTES, _READERS = 1 << 20, 4


class Fetch(Protocol):
    """Gives a contiguous CPU copy of a tensor of the state that a path starts from.

    Without `check` it may have other bits than its digest says, for who checks what comes of it.
    """

    def __call__(self, name: str, *, check: bool = True) -> torch.Tensor: ...


class States:
    """The states of one log; see the methods of `History` with the same names."""

    def __init__(self, history: "History") -> None:
        self._history = history

    def rebuild(
        self, node: int, expected: bytes, without: Collection[int] = ()
    ) -> tuple[StateDigest, dict[str, torch.Tensor]]:
        """See `History.rebuild`."""

        def along(base: StateDigest, path: Path) -> tuple[StateDigest, dict[str, torch.Tensor]]:
            fetch = partial(self.anchored, path.start, base)
            rebuilt = self.follow(base, fetch, path, expected)
            return rebuilt.state, self._completed(rebuilt, fetch, rebuilt.state.specs)

        return self._history.ways.travel(node, along, without=without)

    def tensors(
        self,
        node: int,
        expected: bytes,
        names: Collection[str] | None,
        known: "KnownState | None",
    ) -> dict[str, torch.Tensor]:
        """See `History.tensors`."""
        only = None if names is None else frozenset(names)

        def along(base: StateDigest, path: Path) -> dict[str, torch.Tensor]:
            def fetch(name: str, *, check: bool = True) -> torch.Tensor:
                if known is not None and base is known.state:
                    return known.tensor(name)
                return self.anchored(path.start, base, name, check=check)

            rebuilt = self.follow(base, fetch, path, expected, only)
            wanted = rebuilt.state.specs if names is None else names
            for name in wanted:
                if name not in rebuilt.state.specs:
                    raise NotFound(
                        f"the state after event {node} has no tensor {name!r}", param=name
                    )
            return self._completed(rebuilt, fetch, wanted)

        return self._history.ways.travel(
            node, along, live=None if known is None else (known.node, known.state)
        )

    def _completed(
        self, rebuilt: RebuiltTensors, fetch: Fetch, names: Collection[str]
    ) -> dict[str, torch.Tensor]:
        """The tensors with these names: those that no event changed are fetched, and checked."""
        tensors = dict(rebuilt.tensors)
        fetched = [name for name in names if name not in tensors]

        def some(part: int) -> None:
            for name in fetched[part::_READERS]:
                tensors[name] = fetch(name)

        size = sum(rebuilt.state.specs[name].nbytes for name in fetched)
        each = map if size <= _FEW_BYTES else self._history.pool.map
        for _ in each(some, range(_READERS)):
            pass  # what fails is raised here
        return {name: tensors[name] for name in names}

    def anchored(
        self, node: int, state: StateDigest, name: str, *, check: bool = True
    ) -> torch.Tensor:
        """See `History.anchored`."""
        try:
            spec, digest = state.specs[name], state.digests[name]
            return load_tensor(self._history.blobs, spec, digest, check=check)
        except CorruptLedger as error:
            raise DamagedSnapshot(
                f"snapshot at event {node}, tensor {name!r}: {error}", seq=node
            ) from error

    def follow(
        self,
        base: StateDigest,
        fetch: Fetch,
        path: Path,
        expected: bytes,
        only: Collection[str] | None = None,
    ) -> RebuiltTensors:
        """See `History.follow`.

        With `only`, their parts of the payloads are read. What the path starts from is not checked
        at first, nor are payloads: what comes of them is, every tensor of it. Where that is not
        what was recorded, all is read and checked on the way, which tells what is damaged.
        """
        payloads = self._history.store.unchecked if only is None else self._parts(only)
        with contextlib.suppress(CorruptLedger):
            unchecked = partial(fetch, check=False)
            return self._along(base, unchecked, path, expected, only, payloads)
        return self._along(base, fetch, path, expected, only, self._payloads)

    def _payloads(self, events: Sequence[Event]) -> list[Portion]:
        return [Portion.whole(payload) for payload in self._history.store.payloads(events)]

    def _parts(self, only: Collection[str]) -> Callable[[Sequence[Event]], list[Portion]]:
        """Reads what some tensors take of payloads."""

        def read(events: Sequence[Event]) -> list[Portion]:
            asked = [(event, spans_of(event, only)) for event in events]
            return self._history.store.portions(asked)

        return read

    def _along(
        self,
        base: StateDigest,
        tensor: Callable[[str], torch.Tensor],
        path: Path,
        expected: bytes,
        only: Collection[str] | None,
        payloads: Callable[[Sequence[Event]], Sequence[Portion]],
    ) -> RebuiltTensors:
        moves = chain(
            (Move(event, undo=True) for event in self._history.require_all(path.undo)),
            (Move(event, undo=False) for event in self._history.require_all(path.redo)),
        )
        sources = Sources(tensor, payloads, self.whole)
        try:
            return replay(base, moves, sources, expected, self._history.pool, only)
        except CorruptLedger as error:
            if error.seq is not None and self._history.pruned(
                error.seq
            ):  # while it was on the way there
                raise Pruned(
                    f"what event {error.seq} stored was pruned by gc", seq=error.seq
                ) from error
            raise

    def whole(self, spec: TensorSpec, digest: bytes) -> torch.Tensor:
        """See `History.whole`."""
        return load_tensor(self._history.blobs, spec, digest)


def spans_of(event: Event, names: Collection[str] | Share) -> list[ByteSpan]:
    """Where the parts of some tensors lie in an event's payload."""
    at = 0
    spans = []
    for change in event.changes:
        if change.name in names:
            spans.append(ByteSpan(at, at + change.size))
        at += change.size
    return joined(spans)
