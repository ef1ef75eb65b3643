"""Long questions shared out: a state into a file, many states, and what differs between two.

A state is shared out by its tensors, many states by stretches of the log. Each task reads its part
of the payloads and gives facts; tensors go into files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightledger.ledger.debug.laid_out import begin, fill
from weightledger.ledger.debug.walking import ReplayedState, Walker, version_of
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.reading import reading
from weightledger.ledger.parallel import Executor, Task, Told, in_order, untold
from weightledger.ledger.parallel.shares import Share, shares, worth
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.tensors.state import StateDigest

_HERE = "weightledger.ledger.debug.parallel"

# Bytes of a state that are read, copied and hashed in a second, and of deltas that are applied.
_STATE_BYTES_A_SECOND, _DELTA_BYTES_A_SECOND = 1 << 29, 95 << 20


def shares_of(
    history: History, at: Position, state: StateDigest, executor: Executor
) -> list[Share]:
    """The shares of a state that are worth a task each to rebuild; one where that is all of it."""
    work = {name: spec.nbytes for name, spec in state.specs.items()}
    size = sum(work.values())
    way = history.ways.travel(at.node, lambda _, path: path) if executor.jobs > 1 else None
    deltas = max(0, way.size - size) if way else 0
    seconds = size / _STATE_BYTES_A_SECOND + deltas / _DELTA_BYTES_A_SECOND
    return shares(work, worth(seconds, executor))


def save(
    history: History, position: str, out: Path, executor: Executor, told: Told = untold
) -> dict[str, Any]:
    """Write a state to a safetensors file, verified; which state it is.

    StorageError when it cannot be written, and what `History.rebuild` raises.
    """
    at = history.resolve(position)
    state = history.digests(at.node)
    parts = shares_of(history, at, state, executor)
    if len(parts) == 1:
        replayed = Walker(history).to(at.node)
        replayed.write(out)
        return {**replayed.facts, "seq": replayed.seq}
    empty = ReplayedState(history.model, at.node, state, {}, version_of(history, at.node))
    begin(out, empty.named_specs, empty.metadata())
    tasks = [
        Task(
            f"{_HERE}:fill_share",
            {
                **_where(history),
                "node": at.node,
                "digest": at.state.hex(),
                "share": share.to_json(),
                "file": str(out.absolute()),
            },
        )
        for share in parts
    ]
    in_order(executor.run(tasks, told), len(tasks))
    return {**empty.facts, "seq": at.node}


def fill_share(
    told: Told, url: str, model: str, node: int, digest: str, share: Mapping[str, Any], file: str
) -> int:
    """Write a share's tensors of a state into a file that was begun; how many."""
    with reading(url, model) as history:
        state = history.digests(node)
        names = Share(**share).of(state.specs)
        tensors = history.tensors(node, bytes.fromhex(digest), names)
        named = {name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items()}
        for alias, first in state.aliases.items():
            if first in tensors:
                named[alias.removeprefix(WEIGHTS)] = tensors[first]
        fill(Path(file), named)
    return len(named)


def save_each(
    history: History,
    files: Mapping[int, Path],
    executor: Executor,
    told: Told = untold,
) -> dict[int, dict[str, Any]]:
    """Write the states at several nodes to a file each, verified; which states they are, by node.

    Each task goes over a stretch of the log, so that the way between its states is the shortest.
    """
    nodes = sorted(files)
    size = -(-len(nodes) // min(executor.jobs, len(nodes)))
    stretches = [nodes[at : at + size] for at in range(0, len(nodes), size)]
    tasks = [
        Task(
            f"{_HERE}:save_stretch",
            {**_where(history), "files": [[node, str(files[node].absolute())] for node in stretch]},
        )
        for stretch in stretches
    ]
    facts: dict[int, dict[str, Any]] = {}
    for part in in_order(executor.run(tasks, told), len(tasks)):
        facts.update({one["seq"]: one for one in part})
    return facts


def save_stretch(
    told: Told, url: str, model: str, files: Sequence[tuple[int, str]]
) -> list[dict[str, Any]]:
    """Write the states at some nodes, in the order of the log; which states they are."""
    saved = []
    with reading(url, model) as history:
        walker = Walker(history)
        for node, file in files:
            state = walker.to(node)
            state.write(Path(file))
            saved.append({**state.facts, "seq": node})
            told(len(saved), len(files))
    return saved


def _where(history: History) -> dict[str, str]:
    return {"url": history.store.home.url, "model": history.model}
