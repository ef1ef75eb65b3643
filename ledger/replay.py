"""The pure fold: a state, a path of events, and the state they lead to.

Replay is integer arithmetic on stored bits. The digests along the path must join up, and the
rebuilt tensors and the whole state must have the digests the log recorded; a difference is an
error, never a warning. Live weights, time travel and verification all rebuild through here.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import torch

from ledger.codecs.frames import apply_frames
from ledger.digest import StateDigest, hash_many, root
from ledger.errors import CorruptLedger
from ledger.events import Event
from ledger.tensors import lanes

# Deltas of several events are applied tensor by tensor while the tensor is in cache; this bounds
# how many bytes of payload are held for that.
_BATCH_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Move:
    """One event to apply, forwards or backwards."""

    event: Event
    undo: bool


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Tensors that a path changed (owned by the caller), their chunk digests, and the state."""

    tensors: dict[str, torch.Tensor]
    chunks: dict[str, bytearray]
    state: StateDigest


@dataclass(slots=True)
class _Step:
    seq: int
    undo: bool
    data: memoryview


def replay(
    base: StateDigest,
    tensor: Callable[[str], torch.Tensor],
    moves: Iterable[Move],
    load: Callable[[Event], bytes],
    expected: bytes,
    pool: Executor,
    only: Collection[str] | None = None,
) -> Rebuilt:
    """Apply `moves` to the state `base` and check that it becomes the state `expected`.

    With `only`, the tensors of these full names alone are rebuilt and checked; of the others the
    recorded digests are followed, so that the state's digest still is.

    `tensor(name)` gives a contiguous CPU copy of a tensor of `base` that replay may write to;
    it is asked only for tensors that the path touches. `load(event)` gives a verified payload.
    Raises CorruptLedger, with the seq where it is known, when anything does not match.
    """
    owned: dict[str, torch.Tensor] = {}
    digests: dict[str, bytes] = {}
    last_seq: dict[str, int] = {}
    for batch in _batches(moves):
        work: dict[str, list[_Step]] = {}
        for move in batch:
            touched = only is None or any(c.name in only for c in move.event.changes)
            payload = load(move.event) if touched else None
            for name, step in _split(move, payload, base, digests):
                if only is not None and name not in only:
                    continue
                work.setdefault(name, []).append(step)
                last_seq[name] = step.seq
        for name, steps in work.items():
            if name not in owned:
                owned[name] = tensor(name)
            spec = base.specs[name]
            bits = lanes(owned[name], name)
            for step in steps:
                try:
                    apply_frames(bits, step.data, spec.element.ordered, undo=step.undo)
                except CorruptLedger as error:
                    raise CorruptLedger(
                        f"event {step.seq}: delta of {name!r}: {error}", seq=step.seq
                    ) from error
    hashed = hash_many([lanes(owned[name], name) for name in owned], pool)
    chunks = dict(zip(owned, hashed, strict=True))
    for name, digest in digests.items():
        if name in chunks and root(chunks[name]) != digest:
            raise CorruptLedger(
                f"tensor {name!r} rebuilds to other bits than event {last_seq[name]} recorded",
                seq=last_seq[name],
            )
    state = base.with_digests(digests)
    if state.value != expected:
        raise CorruptLedger(
            f"the state rebuilds to digest {state.value.hex()}, the log says {expected.hex()}"
        )
    return Rebuilt(owned, chunks, state)


def _batches(moves: Iterable[Move]) -> Iterator[list[Move]]:
    batch: list[Move] = []
    size = 0
    for move in moves:
        batch.append(move)
        size += move.event.payload_size
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _split(
    move: Move, payload: bytes | None, base: StateDigest, digests: dict[str, bytes]
) -> Iterator[tuple[str, _Step]]:
    """One step per changed tensor, checked to start where the path has come to.

    `payload` is None where no step's data is wanted.
    """
    seq = move.event.seq
    view = memoryview(payload or b"")
    for change in move.event.changes:
        name = change.name
        start, end = change.before, change.after
        if move.undo:
            start, end = end, start
        at = digests.get(name) or base.digests.get(name)
        if at != start:
            raise CorruptLedger(
                f"event {seq} does not join up with the state it applies to: tensor {name!r}",
                seq=seq,
            )
        if payload is not None and len(view) < change.size:
            raise CorruptLedger(f"event {seq}: payload ends inside tensor {name!r}", seq=seq)
        data, view = view[: change.size], view[change.size :]
        digests[name] = end
        yield name, _Step(seq, move.undo, data)
    if len(view):
        raise CorruptLedger(f"event {seq}: payload is longer than its tensors", seq=seq)
