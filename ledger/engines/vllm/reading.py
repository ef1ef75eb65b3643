"""What a worker reads of the ledger: tensors of a state, and those that a proposal leads to.

All of them by bare name, in whole groups (`fused`), every one verified. Raises CorruptLedger when
the log does not lead to that state, StorageError when it cannot be read.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from weightledger.ledger.engines.vllm import StateRef
from weightledger.ledger.engines.vllm.fused import PACKED, whole_groups
from weightledger.ledger.errors import InvalidRequest, NotFound, WeightsMismatch
from weightledger.ledger.events import decode
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.replay import Move, Sources, replay
from weightledger.ledger.store.payloads import Portion, checked, from_blobs
from weightledger.ledger.store.sql_store import SqlStore
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec

DATABASE = "WEIGHTLEDGER_DATABASE"
"""Where a worker finds the ledger, if not where the driver does."""

# Layers of a proposal that are tried together are at most so large, if one alone is not larger.
_TOGETHER_BYTES = 256 * 1024 * 1024


@contextmanager
def history_of(database: str | None, model: str) -> Iterator[History]:
    """The log of a model, read by one thread, as the worker or else its driver finds it."""
    url = os.environ.get(DATABASE) or database
    if url is None:
        raise InvalidRequest(f"set {DATABASE} where the workers run", param="database")
    store = SqlStore.open(url, upgrade=False)
    try:
        with ThreadPoolExecutor(1) as pool:
            yield History(store.model(model), pool)
    finally:
        store.close()


def read(
    database: str | None,
    model: str,
    target: StateRef,
    names: Collection[str] | None,
    packed: Mapping[str, Sequence[str]] = PACKED,
) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a state that are loaded with these, None for all."""
    with history_of(database, model) as history:
        event = history.require(target.seq)
        if event.state_after != target.digest:
            raise WeightsMismatch(f"this ledger's event {target.seq} leads to another state")
        every = _weights(history.head_state().specs)
        wanted = every if names is None else whole_groups(names, every, packed)
        full = history.tensors(event.node, target.digest, [WEIGHTS + name for name in wanted])
    return [(name.removeprefix(WEIGHTS), tensor) for name, tensor in full.items()]


def proposed(
    database: str | None,
    model: str,
    proposal: str,
    since: bytes,
    target: StateRef,
    packed: Mapping[str, Sequence[str]] = PACKED,
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """What a proposal would have loaded, some layers at a time; a layer is never cut.

    NotFound where it is over, WeightsMismatch unless it leads from the state `since` to `target`.
    """
    with history_of(database, model) as history:
        row = history.store.proposals.read(proposal)
        if row is None:
            raise NotFound(f"proposal {proposal} is over", param="proposal")
        event = decode(row.header)
        ends = event.state_before, event.state_after
        if ends != (since, target.digest) or event.parent is None:
            raise WeightsMismatch(f"proposal {proposal} is not the way to {target.version}")
        payload = row.payload
        data = from_blobs(event, history.blobs) if payload is None else checked(event, payload)
        base = history.digests(event.parent)
        touched = [one.name.removeprefix(WEIGHTS) for one in event.changes]
        wanted = whole_groups(touched, _weights(base.specs), packed)
        for names in _together(wanted, base.specs):
            full = history.tensors(event.parent, since, [WEIGHTS + name for name in names])
            sources = Sources(full.__getitem__, lambda _: [Portion.whole(data)], history.whole)
            moves = [Move(event, undo=False)]
            built = replay(base, moves, sources, target.digest, history.pool, only=full)
            full.update(built.tensors)
            yield [(name, full[WEIGHTS + name]) for name in names]


def _weights(specs: Mapping[str, TensorSpec]) -> list[str]:
    return [name.removeprefix(WEIGHTS) for name in specs if name.startswith(WEIGHTS)]


def _together(names: Sequence[str], specs: Mapping[str, TensorSpec]) -> Iterator[list[str]]:
    """The names layer by layer, as many layers at a time as are small together."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(_layer(name), []).append(name)
    batch: list[str] = []
    size = 0
    for layer in layers.values():
        more = sum(specs[WEIGHTS + name].nbytes for name in layer)
        if batch and size + more > _TOGETHER_BYTES:
            yield batch
            batch, size = [], 0
        batch, size = batch + layer, size + more
    if batch:
        yield batch


def _layer(name: str) -> str:
    """A name up to its first number, which is that of the layer; "" for what is in none."""
    path = name.split(".")
    number = next((at for at, part in enumerate(path) if part.isdigit()), None)
    return "" if number is None else ".".join(path[: number + 1])
