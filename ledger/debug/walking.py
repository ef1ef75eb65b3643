"""A state in memory that walks from one position of a log to another.

Each move reads the events between the two states, or starts from a snapshot where that is less:
visiting many states costs the way between them, not a rebuild of each.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from weightledger.ledger.errors import StorageError
from weightledger.ledger.history.lineage import Path
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.lanes import clone
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.tensors.state import StateDigest

HEADER = "weight_ledger."


@dataclass(frozen=True, slots=True)
class ReplayedState:
    """One state, verified against the log; `tensors` are by full state name and only to be read.

    `version` is the id of the newest listed version that names this very state, if one does.
    """

    model: str
    seq: int
    digest: StateDigest
    tensors: dict[str, torch.Tensor]
    version: str | None = None

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The model's tensors by bare name, further names of tied ones included."""
        named = {n.removeprefix(WEIGHTS): t for n, t in self.tensors.items() if _is_weight(n)}
        for alias, first in self.digest.aliases.items():
            named[alias.removeprefix(WEIGHTS)] = self.tensors[first]
        return named

    @property
    def facts(self) -> dict[str, str]:
        """Which state it is, as text: model, seq, version ("" for none) and digest."""
        return {
            "model": self.model,
            "seq": str(self.seq),
            "version": self.version or "",
            "digest": self.digest.value.hex(),
        }

    def metadata(self, what_if: str | None = None) -> dict[str, str]:
        """What a file's header says of its state."""
        facts = self.facts
        told = {HEADER + key: value for key, value in facts.items()}
        if what_if is not None:
            told[HEADER + "what_if"] = what_if
        # Readers of earlier releases know these without the prefix.
        return told | {key: facts[key] for key in ("model", "seq", "digest")}

    @property
    def named_specs(self) -> list[TensorSpec]:
        """What a file of it holds, by the names that it has there."""
        named = [(spec.name, spec) for spec in self.digest.specs.values()]
        named += [(alias, self.digest.specs[first]) for alias, first in self.digest.aliases.items()]
        return [replace(spec, name=name.removeprefix(WEIGHTS)) for name, spec in named]

    def write(self, out: FilePath, what_if: str | None = None) -> None:
        """Every tensor to a safetensors file, weights by bare name and the others by full name.

        The file's metadata say which state it is, and of a what-if what it is. StorageError when it
        cannot be written.
        """
        named = {name.removeprefix(WEIGHTS): tensor for name, tensor in self.tensors.items()}
        for alias, first in self.digest.aliases.items():  # safetensors stores no shared memory
            named[alias.removeprefix(WEIGHTS)] = self.tensors[first].clone()
        try:
            save_file(named, out, metadata=self.metadata(what_if))
        except (OSError, SafetensorError) as error:
            raise StorageError(f"cannot write {out}: {error}") from error


class Walker:
    """Moves a state through one log, all of it or the tensors with some names; for one thread at a
    time."""

    def __init__(self, history: History, only: Collection[str] | None = None) -> None:
        self._history = history
        self._only = only
        self._at: int | None = None
        self._state: StateDigest | None = None
        self._tensors: dict[str, torch.Tensor] = {}
        self.read_bytes = 0
        """What the moves so far have read, as the path finder counts it."""

    def to(self, node: int) -> ReplayedState:
        """The state after the state-changing event `node`; NotFound, Pruned or CorruptLedger.

        What was given before stays as it was: tensors are replaced, never written to.
        """
        event = self._history.require(node)
        if node != self._at:
            live = None if self._at is None or self._state is None else (self._at, self._state)
            self._history.ways.travel(
                node, lambda base, path: self._take(base, path, event.state_after), live=live
            )
            self._at = node
        assert self._state is not None
        version = version_of(self._history, node)
        return ReplayedState(self._history.model, node, self._state, dict(self._tensors), version)

    def _take(self, base: StateDigest, path: Path, expected: bytes) -> None:
        here = path.start == self._at

        def fetch(name: str, *, check: bool = True) -> torch.Tensor:
            if here:
                return clone(self._tensors[name])
            return self._history.anchored(path.start, base, name, check=check)

        rebuilt = self._history.follow(base, fetch, path, expected, self._only)
        held = self._state
        tensors = {
            name: rebuilt.tensors[name]
            if name in rebuilt.tensors
            else self._tensors[name]
            if held is not None and rebuilt.state.same(held, name)
            else fetch(name)
            for name in rebuilt.state.specs
            if self._only is None or name in self._only
        }
        self._state, self._tensors = rebuilt.state, tensors
        self.read_bytes += path.size


def version_of(history: History, node: int) -> str | None:
    """The id of the newest listed version that names the state at a node, if one does."""
    return next((one.version_id for one in history.naming([node])), None)


def _is_weight(name: str) -> bool:
    return name.startswith(WEIGHTS)
