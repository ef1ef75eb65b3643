"""A small update as bytes, for another process of this machine to work out.

It is what a request came to once it was checked, so nothing of it is checked again but whether the
parameter is still what it was.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.tensors.lanes import TORCH_DTYPES, lanes, name_of
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.policy import KeepOperands, Policy
from weightledger.ledger.writing.requests import Update
from weightledger.ledger.writing.update_commands import ApplyUpdates

# Of a parameter: what takes longer to work out does not go into the turns of others.
_MOST_BYTES = 64 * 1024


_HELD = frozenset(TORCH_DTYPES.values())


class _Asked(msgspec.Struct, frozen=True, array_like=True, gc=False):
    kept: KeepOperands
    spec: TensorSpec
    learning_rate: float
    update_type: str
    metadata: str | None
    dtype: str
    flat: bool
    operand: bytes
    indices: bytes | None
    caller: Caller
    salt: bytes
    head: tuple[int, bytes]
    device: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Asked).decode


class AskedFor(NamedTuple):
    """A command of another writer, the salt of the words beside its event, seq and hash of the last
    event that its writer knew, and the kind of device that has its weights."""

    command: ApplyUpdates
    salt: bytes
    head: tuple[int, bytes]
    device: str


def asked(
    command: Command, policy: Policy, salt: bytes, head: tuple[int, bytes], device: str
) -> bytes | None:
    """A command as another writer with such a policy would carry it out, too; None for one that
    is not that small, expects a seq, or meets more than switches here. See `AskedFor`."""
    if not _shares(policy) or not isinstance(command, ApplyUpdates) or command.batch:
        return None
    (update,) = command.updates
    operand, caller = update.operand, command.caller
    if operand is None or not operand.numel() or operand.dtype not in _HELD:
        return None
    if update.spec.nbytes > _MOST_BYTES or caller.expected_seq is not None:
        return None
    return _encode(
        _Asked(
            policy.operands,
            update.spec,
            update.learning_rate,
            update.update_type,
            command.metadata,
            name_of(operand.dtype),
            operand.dim() > 0,
            lanes(operand).tobytes(),
            None if update.indices is None else lanes(update.indices).tobytes(),
            caller,
            salt,
            head,
            device,
        )
    )


def asked_for(data: bytes, policy: Policy, specs: Mapping[str, TensorSpec]) -> AskedFor | None:
    """The command that was asked for; None where its writer has another policy, or is not of this
    model. Raises CorruptLedger for what is no command."""
    try:
        it = _decode(data)
        if not _shares(policy) or it.kept != policy.operands or specs.get(it.spec.name) != it.spec:
            return None
        operand = _tensor(it.operand, TORCH_DTYPES[it.dtype])
        indices = None if it.indices is None else _tensor(it.indices, torch.int64)
        update = Update(
            it.spec,
            it.learning_rate,
            it.update_type,
            it.metadata,
            operand if it.flat else operand.reshape(()),
            indices,
        )
        command = ApplyUpdates((update,), it.caller, it.metadata)
        return AskedFor(command, it.salt, it.head, it.device)
    except (msgspec.MsgspecError, KeyError, ValueError, RuntimeError) as error:
        raise CorruptLedger(f"a command that another process left is unreadable: {error}") from None


def _shares(policy: Policy) -> bool:
    """Whether all that its updates meet is said by what a command brings with it."""
    return (
        policy.guard is None
        and policy.prepare is None
        and policy.updates
        and not policy.two_person
        and policy.read_only is None
    )


def _tensor(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)).view(dtype)
