"""A few small events that go straight on, replayed in one pass over what they say.

This is what a process pays for every event that others write, right after it was waited for, when
code runs at a third of its speed: so it is little code, which makes no objects of what it reads
once. It says nothing about what is wrong or rare, but leaves it to `history.replay`.
"""

from collections.abc import Callable, Iterable
from math import prod

import msgspec
import torch

from weightledger.ledger.codecs.several import take_through
from weightledger.ledger.events.changes import FRAMES
from weightledger.ledger.events.kinds import IN_PAYLOAD
from weightledger.ledger.history.replay import SMALL_BYTES, RebuiltTensors
from weightledger.ledger.tensors.digest import chunk_digests, root
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import DTYPES
from weightledger.ledger.tensors.state import StateDigest

Body = bytes | memoryview | msgspec.Raw


class _Part(msgspec.Struct, gc=False):
    """A TensorChange as a header says it, with its digests in hex."""

    name: str
    size: int
    before: str | None = None
    after: str | None = None
    form: str = FRAMES


class _Operand(msgspec.Struct, gc=False):
    dtype: str
    shape: list[int]


class _Operands(msgspec.Struct, gc=False):
    where: str | None
    tensors: list[_Operand] = []


class _Said(msgspec.Struct, gc=False):
    """What a body says of its event's payload."""

    tensors: list[_Part] = []
    operands: _Operands | None = None


_read = msgspec.json.Decoder(_Said).decode


def replay_small(
    base: StateDigest,
    line: Iterable[tuple[Body, bytes]],
    tensor: Callable[[str], torch.Tensor],
    expected: bytes,
) -> RebuiltTensors | None:
    """The state that `base` comes to by events in a line, each its body and its payload, and the
    tensors that they change; every digest that `history.replay` compares is as recorded.

    `tensor` gives contiguous CPU copies of the tensors of `base`, which need not be checked: each
    difference is added to every bit, so from other bits it leads to others than recorded. None
    where there is more than a few bytes of them, a tensor is changed by other than differences, or
    anything does not match.
    """
    deltas: dict[str, list[tuple[memoryview, bool]]] = {}
    came_to: dict[str, str] = {}
    size = 0
    try:
        for body, payload in line:
            said, data, at = _read(body), memoryview(payload), 0
            for part in said.tensors:
                name, stop = part.name, at + part.size
                if name not in deltas:
                    size += base.specs[name].nbytes
                    deltas[name], came_to[name] = [], base.digests[name].hex()
                if part.form != FRAMES or part.before != came_to[name] or not at <= stop:
                    return None
                if part.after is None:
                    return None
                deltas[name].append((data[at:stop], False))
                came_to[name], at = part.after, stop
            size += at
            if at + _operand_bytes(said.operands) != len(data) or size > SMALL_BYTES:
                return None
    except (KeyError, msgspec.MsgspecError):
        return None
    tensors: dict[str, torch.Tensor] = {}
    chunks: dict[str, bytearray] = {}
    digests: dict[str, bytes] = {}
    for name, steps in deltas.items():
        made = tensor(name)
        bits = lanes(made, name)
        if take_through(bits, steps, base.specs[name].element.ordered) != (len(bits), 0):
            return None
        hashed = chunk_digests(bits)
        digest = root(hashed)
        if digest.hex() != came_to[name]:
            return None
        tensors[name], chunks[name], digests[name] = made, hashed, digest
    state = base.with_digests(digests)
    return RebuiltTensors(tensors, chunks, state) if state.value == expected else None


def _operand_bytes(said: _Operands | None) -> int:
    """See `events.bodies.operands.payload_bytes_of`."""
    if said is None or said.where != IN_PAYLOAD:
        return 0
    return sum([prod(one.shape) * DTYPES[one.dtype].itemsize for one in said.tensors])
