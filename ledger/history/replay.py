"""The pure fold: a state, a path of events, and the state they lead to.

Replay moves stored bits: integer arithmetic on differences, whole tensors as they are, and low-rank
factors by operations that IEEE 754 fixes to the last bit. The digests along the path must join up,
and the rebuilt tensors and the whole state must have the digests the log recorded; a difference is
an error, never a warning. Live weights, time travel and verification all rebuild through here.
"""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies.operands import payload_bytes_of
from weightledger.ledger.events.changes import WHOLE
from weightledger.ledger.history.steps import ReplayStep, apply_steps
from weightledger.ledger.store.payloads import Portion
from weightledger.ledger.tensors.digest import chunk_digests, hash_many, root
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.side_by_side import await_all, side_by_side
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest

# Deltas of several events are applied tensor by tensor while the tensor is in cache; this bounds
# how many bytes of payload are held for that. Of two batches, the one that is read ahead included.
_BATCH_BYTES, _LEAST_BATCH_BYTES = 64 * 1024 * 1024, 16 * 1024 * 1024
# Below this, handing work to other threads costs more than they save.
SMALL_BYTES = 256 * 1024
# Events whose payloads are asked for at once: a database that is far away costs a journey each.
_PAGE = 16
# So many tensors keep all threads busy to the end, each with tensors of its own.
_MANY = 8
_NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Move:
    """One event to apply, forwards or backwards."""

    event: Event
    undo: bool


@dataclass(frozen=True, slots=True)
class RebuiltTensors:
    """Tensors that a path changed (owned by the caller), their chunk digests, and the state.

    What the path removed is in neither of the mappings.
    """

    tensors: dict[str, torch.Tensor]
    chunks: dict[str, bytearray]
    state: StateDigest


@dataclass(frozen=True, slots=True)
class Sources:
    """Where replay reads from.

    `tensor(name)` gives a contiguous CPU copy of a tensor of the first state, which replay may
    write to; it is asked only for tensors that the path touches. `payloads(events)` gives their
    payloads, verified or only in parts, `whole(spec, digest)` a new tensor with the bytes of a
    blob. All are called from several threads.
    """

    tensor: Callable[[str], torch.Tensor]
    payloads: Callable[[Sequence[Event]], Sequence[Portion]]
    whole: Callable[[TensorSpec, bytes], torch.Tensor]


def replay(
    base: StateDigest,
    moves: Iterable[Move],
    sources: Sources,
    expected: bytes,
    pool: Executor,
    only: Collection[str] | None = None,
) -> RebuiltTensors:
    """Apply `moves` to the state `base` and check that it becomes the state `expected`.

    With `only`, the tensors of these full names alone are rebuilt and checked; of the others the
    recorded digests are followed, so that the state's digest still is.
    Raises CorruptLedger, with the seq where it is known, when anything does not match.
    """
    owned: dict[str, torch.Tensor] = {}
    hashed: dict[str, bytearray] = {}
    last: dict[str, ReplayStep] = {}

    with closing(_read(_batches(moves, base), sources.payloads, pool, only)) as reading:
        for batch, payloads, is_last in reading:
            work: dict[str, list[ReplayStep]] = {}
            for move in batch:
                for step in split(move.event, move.undo, payloads.get(move.event.seq), base, last):
                    last[step.change.name] = step
                    if only is None or step.change.name in only:
                        work.setdefault(step.change.name, []).append(step)
            each = map if _is_small(work) else partial(side_by_side, pool=pool)
            # Of many tensors each is hashed by who has it in the cache, while others wait for the
            # database; of a few, parts are shared out.
            advance = partial(
                _advanced, owned=owned, sources=sources, hashing=is_last and len(work) >= _MANY
            )
            for name, (tensor, digests) in zip(work, each(advance, [*work.items()]), strict=True):
                if tensor is None:
                    owned.pop(name, None)
                else:
                    owned[name] = tensor
                if digests is not None:
                    hashed[name] = digests
            payloads.clear()  # before the next ones are here and those after them are read
            work.clear()
    chunks = _chunks(owned, hashed, pool)
    for name, step in last.items():
        if name in chunks and root(chunks[name]) != step.digest:
            raise CorruptLedger(
                f"tensor {name!r} rebuilds to other bits than event {step.seq} recorded",
                seq=step.seq,
            )
    state = base.moved({name: (step.spec, step.digest) for name, step in last.items()})
    if state.value != expected:
        raise CorruptLedger(
            f"the state rebuilds to digest {state.value.hex()}, the log says {expected.hex()}"
        )
    return RebuiltTensors(owned, chunks, state)


def _chunks(
    owned: Mapping[str, torch.Tensor], hashed: Mapping[str, bytearray], pool: Executor
) -> dict[str, bytearray]:
    """The chunk digests of tensors, of which some are `hashed`."""
    bits = [lanes(owned[name], name) for name in owned if name not in hashed]
    if sum(one.nbytes for one in bits) <= SMALL_BYTES:
        rest = iter([chunk_digests(one) for one in bits])
    else:
        rest = iter(hash_many(bits, pool))
    return {name: hashed[name] if name in hashed else next(rest) for name in owned}


def split(
    event: Event,
    undo: bool,
    payload: Portion | None,
    base: StateDigest,
    last: Mapping[str, ReplayStep],
) -> Iterator[ReplayStep]:
    """One step per changed tensor, checked to start where the path has come to.

    The path began at `base`; `last` has the last step so far of each tensor it touched. `payload`
    is None where no step's data is wanted.
    """
    at_byte = 0
    for change in event.changes:
        name = change.name
        start, end = change.ends(undo=undo)
        if name in last:
            spec, at = last[name].spec, last[name].digest
        else:
            spec, at = base.specs.get(name), base.digests.get(name)
        leaves, enters = change.specs(spec, undo=undo)
        if at != start or spec != leaves or (enters is None) != (end is None):
            raise CorruptLedger(
                f"event {event.seq} does not join up with the state it applies to: tensor {name!r}",
                seq=event.seq,
            )
        if payload is not None and payload.size < at_byte + change.size:
            raise CorruptLedger(
                f"event {event.seq}: payload ends inside tensor {name!r}", seq=event.seq
            )
        data = _NOTHING if payload is None else payload.part(at_byte, change.size)
        at_byte += change.size
        yield ReplayStep(event.seq, change, undo, data, enters)
    if payload is not None and payload.size - at_byte != payload_bytes_of(event.body):
        raise CorruptLedger(f"event {event.seq}: payload is longer than its tensors", seq=event.seq)


def _advanced(
    work: tuple[str, list[ReplayStep]],
    *,
    owned: Mapping[str, torch.Tensor],
    sources: Sources,
    hashing: bool,
) -> tuple[torch.Tensor | None, bytearray | None]:
    """One tensor after its steps, None for gone, and with `hashing` its chunk digests.

    What a whole tensor replaces is not computed.
    """
    name, steps = work
    tensor = owned.get(name)
    whole = max((at for at, step in enumerate(steps) if step.change.form == WHOLE), default=None)
    if whole is not None:
        step, steps = steps[whole], steps[whole + 1 :]
        if step.spec is None or step.digest is None:
            return None, None
        try:
            tensor = sources.whole(step.spec, step.digest)
        except CorruptLedger as error:
            raise CorruptLedger(
                f"event {step.seq}: tensor {name!r}: {error}", seq=step.seq
            ) from error
    elif tensor is None:
        tensor = sources.tensor(name)
    apply_steps(tensor, steps)
    return tensor, chunk_digests(lanes(tensor, name)) if hashing else None


def _is_small(work: Mapping[str, Sequence[ReplayStep]]) -> bool:
    """Whether all these tensors and the deltas to apply to them are few bytes."""
    size = 0
    for steps in work.values():
        size += max(0 if step.spec is None else step.spec.nbytes for step in steps)
        size += sum(len(step.data) for step in steps)
    return size <= SMALL_BYTES


def _touches(event: Event, names: Collection[str]) -> bool:
    return any(change.name in names for change in event.changes)


def _pages(events: Sequence[Event]) -> list[Sequence[Event]]:
    """Events whose payloads are asked for at once; much is read over two connections."""
    size = sum(event.payload_size for event in events)
    most = _PAGE if size <= SMALL_BYTES else min(_PAGE, -(-len(events) // 2))
    return [events[at : at + most] for at in range(0, len(events), most)]


def _read(
    batches: Iterable[tuple[list[Move], bool]],
    payloads: Callable[[Sequence[Event]], Sequence[Portion]],
    pool: Executor,
    only: Collection[str] | None,
) -> Generator[tuple[list[Move], dict[int, Portion], bool]]:
    """Each batch with the payloads of its events, by seq, and whether it is the last. The next
    one's are being read by then."""
    waiting: deque[tuple[list[Move], list[Event], list[Future[Sequence[Portion]]], bool]] = deque()
    try:
        for batch, is_last in batches:
            events = [move.event for move in batch if only is None or _touches(move.event, only)]
            pages = _pages(events)
            if is_last and not waiting and len(pages) == 1:
                yield batch, _by_seq(events, map(payloads, pages)), is_last
                return
            futures = [pool.submit(payloads, page) for page in pages]
            waiting.append((batch, events, futures, is_last))
            if len(waiting) > 1:
                yield _taken(*waiting.popleft())
        while waiting:
            yield _taken(*waiting.popleft())
    finally:
        await_all([future for _, _, futures, _ in waiting for future in futures])


def _taken(
    batch: list[Move],
    events: list[Event],
    futures: list[Future[Sequence[Portion]]],
    is_last: bool,
) -> tuple[list[Move], dict[int, Portion], bool]:
    try:
        return batch, _by_seq(events, [future.result() for future in futures]), is_last
    finally:
        await_all(futures)


def _by_seq(events: Sequence[Event], pages: Iterable[Sequence[Portion]]) -> dict[int, Portion]:
    seqs = (event.seq for event in events)
    return dict(zip(seqs, chain.from_iterable(pages), strict=True))


def _batches(moves: Iterable[Move], base: StateDigest) -> Iterator[tuple[list[Move], bool]]:
    """Moves that are worked on together, and whether they are the last.

    Once their payloads are as long as the tensors that they change, another pass over these costs
    no more than waiting for further payloads.
    """
    batch: list[Move] = []
    size = counted = touched = 0
    seen: set[str] = set()
    for move in moves:
        if size >= _LEAST_BATCH_BYTES:
            for one in batch[counted:]:
                fresh = {change.name for change in one.event.changes} - seen
                seen |= fresh
                touched += sum(base.specs[name].nbytes for name in fresh if name in base.specs)
            counted = len(batch)
            if size >= min(touched, _BATCH_BYTES):
                yield batch, False
                batch, seen = [], set()
                size = counted = touched = 0
        batch.append(move)
        size += move.event.payload_size
    if batch:
        yield batch, True
