"""Start: an engine with weights of its own is brought to the head of an existing log."""

from functools import partial
from typing import Literal

import torch

from weightledger.ledger.errors import WeightsMismatch
from weightledger.ledger.events import Event
from weightledger.ledger.history import lineage
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.change import Change
from weightledger.ledger.projection.projector import Projector
from weightledger.ledger.tensors.digest import chunk_digests
from weightledger.ledger.tensors.lanes import clone, lanes
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.tensors.state import StateDigest

OnMismatch = Literal["refuse", "ledger", "record"]

_NAMES_SHOWN = 8


def attach(
    projector: Projector, history: History, on_mismatch: OnMismatch
) -> dict[str, torch.Tensor] | None:
    """Bring the engine to the head of an existing log.

    Verifies the anchor, the path from it to the head and the head's digest. The engine's own
    weights must equal some state of the log, else WeightsMismatch names the tensors that
    differ; with `on_mismatch="ledger"` the ledger's state replaces them. So it does with
    "record", and copies of the engine's unknown weights are given back, by their bare names, to
    be recorded.
    """
    head = history.head()
    own = projector.hash_engine()
    unknown: dict[str, torch.Tensor] | None = None

    def along(base: StateDigest, path: lineage.Path) -> Change:
        nonlocal unknown
        _require_same_tensors(own, base)
        try:
            if on_mismatch != "ledger":
                _require_known(history, own, head)
        except WeightsMismatch:
            if on_mismatch == "refuse":
                raise
            unknown = {
                name.removeprefix(WEIGHTS): clone(projector.tensor(name)).cpu()
                for name in own.specs
            }

        fetch = partial(history.anchored, path.start, base)
        rebuilt = history.follow(base, fetch, path, head.state_after)
        replaced: dict[str, torch.Tensor] = {}
        chunks: dict[str, bytearray] = {}
        for name, digest in rebuilt.state.digests.items():
            tensor = rebuilt.tensors.get(name)
            if tensor is None:  # untouched since the anchor: read all the same, to verify it
                tensor = fetch(name)
            if own.digests.get(name) != digest:
                replaced[name] = tensor
                chunks[name] = chunk_digests(lanes(tensor, name))
        return projector.changes_to(rebuilt.state, replaced, chunks, {})

    projector.show(head, history.ways.travel(head.node, along))
    return unknown


def _require_same_tensors(own: StateDigest, ledger: StateDigest) -> None:
    weights = {name: spec for name, spec in ledger.specs.items() if name.startswith(WEIGHTS)}
    differing = sorted(
        name
        for name in own.specs.keys() | weights.keys()
        if own.specs.get(name) != weights.get(name)
    )
    differing += sorted(
        alias
        for alias in own.aliases.keys() | ledger.aliases.keys()
        if own.aliases.get(alias) != ledger.aliases.get(alias) and alias not in differing
    )
    if differing:
        raise WeightsMismatch(
            "the model is not the one in the ledger; names, dtypes, shapes or ties differ: "
            + _some(differing)
        )


def _require_known(history: History, own: StateDigest, head: Event) -> None:
    # The usual restart hands over the weights the model was registered with, or the head's.
    if own.value in (head.state_after, history.require(0).state_after):
        return
    if history.store.by_state(own.value) is not None:
        return
    expected = history.head_state().digests
    differing = sorted(name for name in own.digests if own.digests[name] != expected[name])
    if not differing:  # the head's weights, beside which it has other tensors
        return
    raise WeightsMismatch(
        f"the model's weights equal no state of the ledger; different from its head: "
        f"{_some(differing)}. Start with --on-mismatch ledger to load the ledger's weights,"
        " or with --on-mismatch record to record the model's as an event"
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(name.removeprefix(WEIGHTS) for name in names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
