"""Registering a model from what its ranks hold: one event, one snapshot, as one process would."""

import time
from collections.abc import Mapping

import numpy as np
import torch

from weightledger.ledger.errors import LedgerError, SeqTaken
from weightledger.ledger.events import NO_WORDS, Draft, seal
from weightledger.ledger.events.bodies import Registered
from weightledger.ledger.history import snapshots
from weightledger.ledger.sharding.chunks import ChunkLayout, agreed
from weightledger.ledger.sharding.parts import check, part_of
from weightledger.ledger.sharding.ranks import Ranks
from weightledger.ledger.store import LedgerStore
from weightledger.ledger.store.attached import Attached
from weightledger.ledger.tensors.digest import chunk_digests, root
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.tensors.state import StateDigest


def register(
    store: LedgerStore, model: str, ranks: Ranks, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Append a model's first event with its snapshot, on the first rank; leave it be if another
    process was faster. The tensors are put together there one at a time."""
    agreed(ranks, lambda: [check(name, tensor) for name, tensor in tensors.items()])
    firsts = {id(tensor): name for name, tensor in reversed(list(tensors.items()))}
    aliases = {
        WEIGHTS + name: WEIGHTS + firsts[id(tensor)]
        for name, tensor in tensors.items()
        if firsts[id(tensor)] != name
    }
    parts = {
        WEIGHTS + name: part_of(name, tensor)
        for name, tensor in tensors.items()
        if WEIGHTS + name not in aliases
    }
    layout = ChunkLayout(ranks, parts)
    values = layout.own_chunks(parts)
    told = ranks.tell_all({name: bytes(chunk_digests(lanes(one))) for name, one in values.items()})
    specs = [TensorSpec(name, part.spec.dtype, part.spec.shape) for name, part in parts.items()]
    digests = {
        name: root(b"".join(told[rank][name] for rank in layout.order(name))) for name in parts
    }
    error: LedgerError | None = None
    for spec in specs:
        whole = layout.whole(spec, values[spec.name])
        if whole is not None and error is None:
            try:
                store.blobs.put(digests[spec.name], lanes(whole).view(np.uint8))
            except LedgerError as failed:
                error = failed
    if ranks.rank == 0 and error is None:
        try:
            _append(store, model, StateDigest(specs, digests, aliases))
        except SeqTaken:
            pass  # another process was first, and its state is what is compared with
        except LedgerError as failed:
            error = failed
    ranks.agree(None, error)


def _append(store: LedgerStore, model: str, state: StateDigest) -> None:
    body = Registered(len(state.specs), sum(spec.nbytes for spec in state.specs.values()))
    anchor, manifest = snapshots.describe(0, state)
    event = seal(Draft(body, state.value), model, None, time.time_ns() // 1000)
    store.register(
        (
            event,
            NO_WORDS,
            Attached(list(state.specs), blobs={anchor.manifest: manifest}, snapshot=anchor),
        )
    )
