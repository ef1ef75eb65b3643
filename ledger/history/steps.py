"""One tensor's way through events: steps, each its part of one event, applied to it in place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch

from weightledger.ledger.codecs import factors
from weightledger.ledger.codecs.delta import Delta, apply_several
from weightledger.ledger.codecs.frames import Frame, apply_frames, frames_of
from weightledger.ledger.codecs.several import take_through
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events.changes import FACTORS, FRAMES, WHOLE, TensorChange
from weightledger.ledger.tensors.digest import CHUNK_BYTES
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import ElementType, Lanes, TensorSpec

# Most bytes of decoded deltas of one tile that are held before they are applied.
_HELD_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """One tensor's part of one event; `spec` is what the tensor is afterwards, None for gone."""

    seq: int
    change: TensorChange
    undo: bool
    data: memoryview
    spec: TensorSpec | None

    @property
    def digest(self) -> bytes | None:
        return self.change.ends(undo=self.undo)[1]


def apply_step(tensor: torch.Tensor, step: ReplayStep, written: set[int] | None = None) -> None:
    """Take a contiguous CPU tensor through a step in place; of WHOLE it already is the result.

    The numbers of the digest chunks that it writes are added to `written`. Raises CorruptLedger,
    with the seq, for a delta that cannot be read.
    """
    change, spec = step.change, step.spec
    assert spec is not None
    if change.form == WHOLE:
        return
    with _named(step):
        if change.form == FACTORS:
            if step.undo:
                raise CorruptLedger("it cannot be undone")
            factors.apply_factors(tensor, factors.decode(step.data, spec), spec)
            if written is not None:
                written.update(range(-(-tensor.nbytes // CHUNK_BYTES)))
            return
        bits = lanes(tensor, change.name)
        apply_frames(bits, step.data, spec.element.ordered, undo=step.undo, written=written)


def apply_steps(tensor: torch.Tensor, steps: Sequence[ReplayStep]) -> None:
    """`apply_step` for several, one after another; after an error the tensor is of no use."""
    for form, run in groupby(steps, lambda step: step.change.form):
        same = list(run)
        if form == FRAMES:
            _apply_tiles(lanes(tensor, same[0].change.name), same)
        else:
            for step in same:
                apply_step(tensor, step)


def _apply_tiles(bits: Lanes, steps: Sequence[ReplayStep]) -> None:
    """Take lanes through several deltas tile by tile, each in the cache for them all."""
    start, done = take_through(
        bits, [(step.data, step.undo) for step in steps], _element(steps[0]).ordered
    )
    if start == len(bits):
        return
    split: list[list[Frame]] = []
    for step in steps:
        with _named(step):
            split.append(frames_of(step.data, len(bits)))
    # Up to there all are cut alike, and a tile further where some of its deltas were applied.
    number = list(accumulate((frame.lanes for frame in split[0]), initial=0)).index(start)
    if done:
        stop = start + split[0][number].lanes
        rest = zip(steps[done:], split[done:], strict=True)
        _apply_tile(bits[start:stop], [(step, frames[number]) for step, frames in rest])
        start, number = stop, number + 1
    split = [frames[number:] for frames in split]
    if len({tuple(frame.lanes for frame in frames) for frames in split}) == 1:
        for tile in zip(*split, strict=True):
            stop = start + tile[0].lanes
            _apply_tile(bits[start:stop], list(zip(steps, tile, strict=True)))
            start = stop
        return
    for step, frames in zip(steps, split, strict=True):  # cut in other places
        at = start
        for frame in frames:
            _apply_tile(bits[at : at + frame.lanes], [(step, frame)])
            at += frame.lanes


def _apply_tile(tile: Lanes, frames: Sequence[tuple[ReplayStep, Frame]]) -> None:
    ordered = _element(frames[0][0]).ordered
    held: list[tuple[Delta, bool]] = []
    size = 0
    for step, frame in frames:
        with _named(step):
            delta = frame.delta(tile.dtype)
        held.append((delta, step.undo))
        size += delta.nbytes
        if size > _HELD_BYTES:
            apply_several(tile, held, ordered)
            held, size = [], 0
    apply_several(tile, held, ordered)


def _element(step: ReplayStep) -> ElementType:
    assert step.spec is not None
    return step.spec.element


@contextmanager
def _named(step: ReplayStep) -> Iterator[None]:
    """In its block what is wrong with a delta says which event and tensor it is of."""
    try:
        yield
    except CorruptLedger as error:
        raise CorruptLedger(
            f"event {step.seq}: delta of {step.change.name!r}: {error}", seq=step.seq
        ) from error
