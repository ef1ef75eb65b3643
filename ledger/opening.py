"""Taking up a model to write to: registered at first use, its live weights brought to the head."""

import time
from collections.abc import Mapping
from concurrent.futures import Executor

import torch

from weightledger.ledger.engines import Engine
from weightledger.ledger.engines.state import StateEngine
from weightledger.ledger.errors import InvalidRequest, SeqTaken
from weightledger.ledger.events import NO_WORDS, seal
from weightledger.ledger.history import snapshots
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.snapshot_tensors import tensor_blobs
from weightledger.ledger.log import Log
from weightledger.ledger.projection.projector import Projector
from weightledger.ledger.projection.starting import OnMismatch, attach
from weightledger.ledger.store import LedgerStore
from weightledger.ledger.store.attached import Attached
from weightledger.ledger.writing.policy import ANYTHING_GOES, Policy

MAX_NAME = 255


def open_log(
    store: LedgerStore,
    pool: Executor,
    name: str,
    base: torch.nn.Module | Mapping[str, torch.Tensor] | None,
    engine: Engine | None,
    on_mismatch: OnMismatch,
    *,
    alpha: float,
    max_held_versions: int,
    held_versions_wait_s: float,
    policy: Policy | None,
) -> Log:
    """See `Ledger.model`."""
    if engine is None:
        engine = StateEngine(
            History(store.model(name), pool).weights("head") if base is None else base
        )
    if policy is not None and policy.read_only is not None:
        store.model(name)  # nobody registers it here
    projector = Projector(
        engine,
        pool,
        max_held_versions=max_held_versions,
        held_versions_wait_s=held_versions_wait_s,
    )
    if name not in store.models():
        _register(store, name, projector)
    history = History(store.model(name), pool)
    brought = None if projector.attached else attach(projector, history, on_mismatch)
    log = Log(history, projector, alpha=alpha, policy=policy or ANYTHING_GOES)
    if brought is not None:
        log.record(brought, "the weights that the model was started with")
    return log


def check_model_name(name: str) -> None:
    """Raise InvalidRequest unless a model may be registered by this name.

    It stands in every event, in addresses, checkpoints and lines of logs, and has to be the same
    in both databases: PostgreSQL keeps no NUL.
    """
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= MAX_NAME
        or name != name.strip()
        or not name.isprintable()
    ):
        got = repr(name) if len(repr(name)) <= MAX_NAME else f"{len(repr(name))} characters"
        raise InvalidRequest(
            f"a model's name has 1 to {MAX_NAME} printable characters, and no space around it;"
            f" got {got}",
            param="model",
        )


def _register(store: LedgerStore, name: str, projector: Projector) -> None:
    """Append the first event with its snapshot; leave the projector be if another was first."""
    check_model_name(name)
    draft, state = projector.genesis()
    event = seal(draft, name, None, time.time_ns() // 1000)
    anchor, manifest = snapshots.describe(0, state)
    blobs = tensor_blobs(state, projector.tensor)
    try:
        store.register(
            (
                event,
                NO_WORDS,
                Attached(
                    list(state.specs),
                    blobs={**blobs, anchor.manifest: manifest},
                    snapshot=anchor,
                ),
            )
        )
    except SeqTaken:
        return
    projector.adopt(event, state)
