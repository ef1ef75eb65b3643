"""The log of a model that is cut over ranks: every rank has one of these, and all do the same with
it at the same time."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import torch

from weightledger.ledger.errors import (
    InvalidRequest,
    KeyTaken,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    RankLost,
    SeqTaken,
)
from weightledger.ledger.events import Annotation, BlobRef, Draft, Event, seal
from weightledger.ledger.history.reader import History
from weightledger.ledger.sharding.anchoring import is_due, snapshot
from weightledger.ledger.sharding.chunks import ChunkLayout, agreed, agreed_on, as_bytes
from weightledger.ledger.sharding.encoding import Encoded, RankChunks, differs, encode
from weightledger.ledger.sharding.events import drafted
from weightledger.ledger.sharding.limits import (
    ShardLimits,
    judged,
    not_finite,
    require_allowed,
    require_possible,
)
from weightledger.ledger.sharding.parts import check, fill, part_of, same_here
from weightledger.ledger.sharding.ranks import Ranks
from weightledger.ledger.sharding.registering import register
from weightledger.ledger.sharding.retries import recorded_before, request_digest
from weightledger.ledger.store import LedgerStore
from weightledger.ledger.store.attached import Attached
from weightledger.ledger.tensors.lanes import empty
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.tensors.state import StateDigest
from weightledger.ledger.writing.append_loop import back_off, gave_up, out_of_patience
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.policy import ANYTHING_GOES, UNJUDGED, Policy, Verdict
from weightledger.ledger.writing.recording import unwrapped_names
from weightledger.ledger.writing.requests import metadata_text

logger = logging.getLogger(__name__)

_LOST = -1  # in place of a seq: another writer has it


class ShardedLog:
    """One model's log, for the ranks that hold its shards. Every method is called by all of them.

    Each keeps its share of the newest state in memory, to compare with: the model's bytes divided
    by the number of ranks. Writes meet `policy` and `limits`, and no evaluator, since no rank has
    the whole model; their events say so. Where the way from the last snapshot has grown to `alpha`
    times the model, the ranks write one.
    """

    def __init__(
        self,
        store: LedgerStore,
        pool: Executor,
        model: str,
        ranks: Ranks,
        *,
        policy: Policy = ANYTHING_GOES,
        limits: ShardLimits | None = None,
        alpha: float = 1.0,
    ) -> None:
        self.model = model
        self.ranks = ranks
        self._policy = policy
        self._limits = limits
        self._alpha = alpha
        self._store = store
        self._pool = pool
        self._history: History | None = None
        self._held: dict[str, RankChunks] = {}
        self._state: StateDigest | None = None
        self._node = -1

    @property
    def history(self) -> History:
        """The log, to read by this rank alone."""
        assert self._history is not None, "the model has not been taken up"
        return self._history

    def close(self) -> None:
        """Leave the ranks' group."""
        self.ranks.close()

    # What ranks do together

    def record_sharded(
        self,
        module: torch.nn.Module | Mapping[str, torch.Tensor],
        reason: str | None = None,
        *,
        caller: Caller = ANYONE,
        metadata: Mapping[str, Any] | None = None,
    ) -> Event:
        """Record what has become of the model, in one atomic event; given on every rank.

        The event's state, its digest and the bits are those that one process with the whole model
        would have recorded. What `limits` refuse is an `update_rejected` event, and the model is
        what it was. The same request with the same idempotency key is given the first one's event.
        Raises ReplicasDiverge, on every rank, where ranks that should hold the same hold other
        bits; InvalidRequest and NotFound where the model is not the ledger's; InvalidRequest under
        the two-person rule; IdempotencyMismatch for a key of another request; RankLost when a rank
        is gone: then nothing was recorded; OutcomeUnknown when the first rank is gone after it may
        have appended.
        """
        require_allowed(self._policy)
        text = metadata_text(metadata)
        annotation = Annotation(caller.actor, reason or caller.reason, text)
        tensors, ways = agreed(self.ranks, lambda: self._checked(module))
        parts = {WEIGHTS + name: part_of(name, tensor) for name, tensor in tensors.items()}
        layout = ChunkLayout(self.ranks, parts)
        after = layout.own_chunks(parts)
        key = caller.idempotency_key
        request = None if key is None else request_digest(self.ranks, layout, after, text)
        started, attempts = time.perf_counter(), 0
        while True:
            if key is not None and request is not None:
                known = recorded_before(self.ranks, self.history.store, key, request)
                if known is not None:
                    return self.history.require(known)
            before = self._catch_up(layout)
            changed = self._changed(after)
            held, told = self._encoded([before.specs[name] for name in changed], after)
            parts_done = [
                {name: Encoded.from_plain(one) for name, one in zip(changed, rank[0], strict=True)}
                for rank in told
            ]
            blobs = [[BlobRef(digest, size) for digest, size in rank[1]] for rank in told]
            orders = {name: layout.order(name) for name in changed}
            verdict = self._judged(changed, after, parts_done)
            draft, index, state = drafted(before, changed, parts_done, blobs, orders, ways, verdict)
            touched = changed if verdict.reason is None else []
            blobs_of = {} if index is None else {draft.payload[-1].digest: index}
            event = self._append(
                draft, annotation, Attached(touched, blobs=blobs_of), caller, request
            )
            if event is not None:
                break
            attempts += 1  # another writer was faster: compare with what it made
            if out_of_patience(started, attempts):
                raise gave_up(attempts, self.model)
            back_off(attempts)
        if verdict.reason is None:
            self._held |= held
            self._state, self._node = state, event.node
            self._anchor(layout)
        return event

    def restore_sharded(
        self, module: torch.nn.Module | Mapping[str, torch.Tensor], position: str = "head"
    ) -> Event:
        """Give a module's tensors, or each rank's part of them, the values at a position.

        The ledger is not changed. Each tensor is rebuilt and verified by one rank and sent to the
        others. Gives the event whose state it is; NotFound, Pruned and CorruptLedger on all ranks.
        """
        at = agreed(self.ranks, lambda: self.history.resolve(position))
        node, digest = self.ranks.tell_all([at.node, at.state])[0]
        state = agreed(self.ranks, lambda: self.history.digests(node))
        tensors, _ = agreed(self.ranks, lambda: self._checked(module))
        for name, whole in self._each(node, digest, state):
            fill(tensors[name.removeprefix(WEIGHTS)], whole)
        return self.history.require(node)

    def take_up(self, module: torch.nn.Module | Mapping[str, torch.Tensor] | None) -> None:
        """Find the model in the ledger, or register it with what the ranks hold.

        InvalidRequest for a policy that ranks cannot follow.
        """
        require_possible(self._policy)
        known = agreed(self.ranks, lambda: self.model in self._store.models())
        # All ask the first rank: another process may have registered it between two of them.
        if not self.ranks.tell_all(known)[0]:
            if module is None:
                raise NotFound(f"Model {self.model!r} not found; give the module to register it")
            register(self._store, self.model, self.ranks, _tensors(module))
        self._history = agreed(
            self.ranks, lambda: History(self._store.model(self.model), self._pool)
        )

    # Steps

    def _checked(
        self, module: torch.nn.Module | Mapping[str, torch.Tensor]
    ) -> tuple[Mapping[str, torch.Tensor], tuple[str, ...]]:
        """The module's tensors by the ledger's bare names, and what was taken out of theirs."""
        state = self.history.head_state()
        tensors, ways = self._named(module, state)
        wanted = {n.removeprefix(WEIGHTS): s for n, s in state.specs.items() if _is_weight(n)}
        for bare, spec in wanted.items():
            got = check(bare, tensors[bare])
            if (got.dtype, got.shape) != (spec.dtype, spec.shape):
                raise InvalidRequest(
                    f"tensor {bare!r} is {spec.dtype} {spec.shape}, got {got.dtype} {got.shape}",
                    param=bare,
                )
        for alias, first in state.aliases.items():
            one, other = alias.removeprefix(WEIGHTS), first.removeprefix(WEIGHTS)
            if one in tensors and not same_here(tensors[one], tensors[other]):
                raise InvalidRequest(f"{one!r} is tied to {other!r}, but is another", param=one)
        return {bare: tensors[bare] for bare in wanted}, ways

    def _named(
        self, module: torch.nn.Module | Mapping[str, torch.Tensor], state: StateDigest
    ) -> tuple[Mapping[str, torch.Tensor], tuple[str, ...]]:
        """The module's tensors by the ledger's bare names, and what was taken out of theirs."""
        tensors, ways = _tensors(module), tuple[str, ...]()
        weights = {n.removeprefix(WEIGHTS) for n in state.specs if n.startswith(WEIGHTS)}
        wanted = weights | {alias.removeprefix(WEIGHTS) for alias in state.aliases}
        if not weights <= tensors.keys() <= wanted:
            tensors, ways = unwrapped_names(tensors, wanted)
        missing, extra = sorted(weights - tensors.keys()), sorted(tensors.keys() - wanted)
        if missing:
            raise NotFound(f"the recorded model lacks {', '.join(missing)}")
        if extra:
            raise InvalidRequest(f"the ledger's model has no {', '.join(extra)}", param=extra[0])
        return tensors, ways

    def _catch_up(self, layout: ChunkLayout) -> StateDigest:
        """Hold the newest state's values of the chunks that this rank records; gives that state."""
        lengths = {
            name: stop - start for name in layout.sizes for start, stop in [layout.owned(name)]
        }
        fits = self._state is not None and all(
            as_bytes(self._held[name].values).numel() == size for name, size in lengths.items()
        )

        def standing() -> list[Any]:
            head = self.history.head()
            return [head.node, head.state_after, self._node if fits else None]

        told = agreed_on(self.ranks, standing)
        node, digest, _ = told[0]
        if self._state is not None and all(at == node for _, _, at in told):
            return self._state
        state = agreed(self.ranks, lambda: self.history.digests(node))
        held = {}
        for name, whole in self._each(node, digest, state):
            start, stop = layout.owned(name)
            own = as_bytes(whole.reshape(-1))[start:stop].clone()
            held[name] = RankChunks.of(own.view(whole.dtype))
        self._held, self._state, self._node = held, state, node
        return state

    def _encoded(
        self, specs: Sequence[TensorSpec], after: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, RankChunks], list[Any]]:
        """This rank's share of the event, durable in blobs: what it holds then, and what each rank
        says of its own, `Encoded` of each tensor and its blobs."""
        held: dict[str, RankChunks] = {}

        def work() -> list[Any]:
            done, now, refs = encode(specs, self._held, after, self._store.blobs, self._pool)
            held.update(now)
            plain = [done[spec.name].to_plain() for spec in specs]
            return [plain, [[ref.digest, ref.size] for ref in refs]]

        return held, agreed_on(self.ranks, work)

    def _judged(
        self,
        changed: Sequence[str],
        after: Mapping[str, torch.Tensor],
        parts: Sequence[Mapping[str, Encoded]],
    ) -> Verdict:
        """What the limits say, the same on every rank; nothing is measured where there are none."""
        if self._limits is None:
            return UNJUDGED
        return judged(self._limits, changed, self.ranks.tell_all(not_finite(after, changed)), parts)

    def _anchor(self, layout: ChunkLayout) -> None:
        """Write a snapshot where one is due. The event is in the log, so nothing here may raise: a
        rank that is gone is noticed by the next call."""
        assert self._state is not None
        try:
            first = self.ranks.rank == 0
            due = first and is_due(self.history, self._node, self._state, self._alpha)
            if self.ranks.tell_all(due)[0]:
                snapshot(self.history, self.ranks, layout, self._node, self._state, self._held)
        except RankLost as error:
            logger.warning("no snapshot after event %d: %s", self._node, error)

    def _each(
        self, node: int, digest: bytes, state: StateDigest
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight at a node, whole, one after the other; rebuilt by one rank each."""
        names = [name for name in state.specs if _is_weight(name)]
        mine = names[self.ranks.rank :: self.ranks.size]
        rebuilt = agreed(
            self.ranks, lambda: self.history.tensors(node, digest, mine) if mine else {}
        )
        for place, name in enumerate(names):
            source = place % self.ranks.size
            whole = rebuilt.pop(name) if source == self.ranks.rank else empty(state.specs[name])
            if whole.numel():
                self.ranks.broadcast(as_bytes(whole.view(-1)), source)
            yield name, whole

    def _changed(self, after: Mapping[str, torch.Tensor]) -> list[str]:
        """The tensors that have other bits on some rank, in the order of the state."""
        mine = [differs(self._held[name].values, values) for name, values in after.items()]
        told = self.ranks.tell_all(mine)
        return [name for at, name in enumerate(after) if any(rank[at] for rank in told)]

    def _append(
        self,
        draft: Draft,
        annotation: Annotation,
        attached: Attached,
        caller: Caller,
        request: bytes | None,
    ) -> Event | None:
        """Have the first rank append the event; None where another writer was faster."""
        seq, error = _LOST, None
        if self.ranks.rank == 0:
            try:
                event = self._sealed(draft, annotation, caller, request)
                if event is not None:
                    self.history.store.append((event, annotation, attached))
                    seq = event.seq
            except (SeqTaken, KeyTaken):
                pass
            except Exception as failed:  # noqa: BLE001  every rank has to hear of it
                error = failed
        try:
            seq = self.ranks.agree(seq, error)[0]
        except RankLost as lost:
            raise OutcomeUnknown(
                "a rank is gone while the event was appended: whether it was recorded is in the log"
            ) from lost
        return None if seq == _LOST else self.history.require(seq)

    def _sealed(
        self, draft: Draft, annotation: Annotation, caller: Caller, request: bytes | None
    ) -> Event | None:
        head, expected = self.history.head(), caller.expected_seq
        if head.node != self._node:
            return None
        if expected is not None and head.state_seq != expected:
            raise PreconditionFailed(
                f"expected seq {expected}, but the last state change is seq {head.state_seq}",
                head_seq=head.state_seq,
            )
        return seal(
            draft,
            self.model,
            head,
            time.time_ns() // 1000,
            annotation=annotation,
            request_id=caller.request_id,
            idempotency_key=caller.idempotency_key,
            request_digest=request,
        )


def _tensors(
    module: torch.nn.Module | Mapping[str, torch.Tensor],
) -> Mapping[str, torch.Tensor]:
    """A module's parameters and buffers, those that are tied as the same object."""
    return module.state_dict(keep_vars=True) if isinstance(module, torch.nn.Module) else module


def _is_weight(name: str) -> bool:
    return name.startswith(WEIGHTS)
