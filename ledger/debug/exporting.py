"""States written to files: safetensors, each with a header that says which state it is."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.errors import StorageError
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.spec import WEIGHTS

HEADER = "weight_ledger."


def write_safetensors(state: ReplayedState, out: Path, what_if: str | None = None) -> None:
    """Every tensor of a state, weights by bare name and the others by full name.

    The file's metadata say which state it is, and of a what-if what it is. StorageError when it
    cannot be written.
    """
    named = {name.removeprefix(WEIGHTS): tensor for name, tensor in state.tensors.items()}
    for alias, first in state.digest.aliases.items():  # safetensors stores no shared memory
        named[alias.removeprefix(WEIGHTS)] = state.tensors[first].clone()
    facts = facts_of(state)
    metadata = {HEADER + key: value for key, value in facts.items()}
    # Readers of earlier releases know these without the prefix.
    if what_if is not None:
        metadata[HEADER + "what_if"] = what_if
    metadata |= {key: facts[key] for key in ("model", "seq", "digest")}
    try:
        save_file(named, out, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {out}: {error}") from error


def facts_of(state: ReplayedState) -> dict[str, str]:
    """Which state it is, as text: model, seq, version ("" for none) and digest."""
    return {
        "model": state.model,
        "seq": str(state.seq),
        "version": state.version or "",
        "digest": state.digest.value.hex(),
    }


def visit(
    history: History, positions: Iterable[Position]
) -> Iterator[tuple[Position, ReplayedState]]:
    """Each position with its state, in the order of the log, so that the way is the shortest.

    Several in one pass cost the way between them. Raises what `History.rebuild` does.
    """
    walker = Walker(history)
    for position in sorted(positions, key=lambda one: one.node):
        yield position, walker.to(position.node)
