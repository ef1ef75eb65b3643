"""States rebuilt: tensors read from a snapshot and taken along a path, every one verified.

The half of `history.reader` that needs torch, imported when a state is first asked for.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import TYPE_CHECKING

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

# Tensors of this many bytes together are read by several threads: fewer cost less than handing them
# over, and of more each thread would hold parts in memory beside them.
_FEW_BYTES, _MANY_BYTES = 1 << 20, 1 << 26


class States:
    """The states of one log; see the methods of `History` with the same names."""

    def __init__(self, history: "History") -> None:
        self._history = history

    def rebuild(
        self, node: int, expected: bytes, without: Collection[int] = ()
    ) -> tuple[StateDigest, dict[str, torch.Tensor]]:
        """See `History.rebuild`."""

        def along(base: StateDigest, path: Path) -> tuple[StateDigest, dict[str, torch.Tensor]]:
            def fetch(name: str) -> torch.Tensor:
                return self.anchored(path.start, base, name)

            rebuilt = self.follow(base, fetch, path, expected)
            state = rebuilt.state
            return state, {
                name: rebuilt.tensors[name] if name in rebuilt.tensors else fetch(name)
                for name in state.specs
            }

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
            def fetch(name: str) -> torch.Tensor:
                if known is not None and base is known.state:
                    return known.tensor(name)
                return self.anchored(path.start, base, name)

            rebuilt = self.follow(base, fetch, path, expected, only)
            wanted = rebuilt.state.specs if names is None else names
            for name in wanted:
                if name not in rebuilt.state.specs:
                    raise NotFound(
                        f"the state after event {node} has no tensor {name!r}", param=name
                    )
            specs = rebuilt.state.specs
            fetched = [name for name in wanted if name not in rebuilt.tensors]
            size = sum(specs[name].nbytes for name in fetched)
            each = self._history.pool.map if _FEW_BYTES < size <= _MANY_BYTES else map
            tensors = {**rebuilt.tensors, **dict(zip(fetched, each(fetch, fetched), strict=True))}
            return {name: tensors[name] for name in wanted}

        return self._history.ways.travel(
            node, along, live=None if known is None else (known.node, known.state)
        )

    def anchored(self, node: int, state: StateDigest, name: str) -> torch.Tensor:
        """See `History.anchored`."""
        try:
            return load_tensor(self._history.blobs, state.specs[name], state.digests[name])
        except CorruptLedger as error:
            raise DamagedSnapshot(
                f"snapshot at event {node}, tensor {name!r}: {error}", seq=node
            ) from error

    def follow(
        self,
        base: StateDigest,
        tensor: Callable[[str], torch.Tensor],
        path: Path,
        expected: bytes,
        only: Collection[str] | None = None,
    ) -> RebuiltTensors:
        """See `History.follow`.

        With `only`, their parts of the payloads are read. Where what comes of them is not what was
        recorded, whole payloads are, which tells the event that is damaged.
        """
        if only is not None:
            with contextlib.suppress(CorruptLedger):
                return self._along(base, tensor, path, expected, only, self._parts(only))
        return self._along(base, tensor, path, expected, only, self._payloads)

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
