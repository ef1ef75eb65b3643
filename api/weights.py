"""A state as a safetensors file."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from weightledger.ledger.errors import StorageError
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.spec import WEIGHTS


def save_state(history: History, position: str, out: Path) -> dict[str, Any]:
    """Rebuild the state at a position, verify its digests, and write it to `out`.

    Returns the model's name, the seq and the digest, which stand in the file's metadata too.
    Raises what `History.rebuild` does, and StorageError when the file cannot be written.
    """
    target = history.resolve(position)
    state, tensors = history.rebuild(target.node, target.state)
    named = {key.removeprefix(WEIGHTS): tensor for key, tensor in tensors.items()}
    for alias, first in state.aliases.items():  # safetensors stores no shared memory
        named[alias.removeprefix(WEIGHTS)] = tensors[first].clone()
    facts = {"model": history.model, "seq": target.node, "digest": state.value.hex()}
    try:
        save_file(named, out, metadata={key: str(value) for key, value in facts.items()})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {out}: {error}") from error
    return facts
