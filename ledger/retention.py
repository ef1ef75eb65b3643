"""Retention: dropping what no retained state needs.

Retained are the head, every listed version (pinned ones never leave the list), every version under
legal hold, listed or not, and every state recorded within the grace period. For each of them the
cheapest way from a snapshot is kept: that snapshot, and the payloads along the way. Then, in this
order,

1. a `pruned` event says which events and snapshots go. It takes its place in the log, so a writer
   that was about to rely on one of them loses the race and finds it pruned;
2. blobs that nothing refers to any more, in any log of the store, are deleted one by one. A blob
   touched within the grace period stays: its event may be on the way.

Event rows, with their small payloads and all digests, stay for ever. Stopped half-way, the next run
goes on: what the first step named is unreachable already, the second looks for it again.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from weightledger.ledger.blobs import MIN_GRACE_S, Stored
from weightledger.ledger.errors import CorruptLedger, InvalidRequest, Pruned, StorageFull
from weightledger.ledger.events import (
    ADAPTER_LOADED,
    ADAPTER_UNLOADED,
    STATE_CHANGING,
    UPDATED,
    Draft,
    Event,
)
from weightledger.ledger.history import holds, lineage, pruning, rollouts, trials
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.snapshots import read_manifest
from weightledger.ledger.store.attached import Attached
from weightledger.ledger.writing.append_loop import Stateless, append_stateless
from weightledger.ledger.writing.caller import ANYONE, Caller

Step = TypeVar("Step")

Progress = Callable[[str, int], None]
"""Called with what is being done and how many are done."""

_PRUNABLE = frozenset({UPDATED, ADAPTER_LOADED, ADAPTER_UNLOADED})


@dataclass(slots=True)
class GcReport:
    """What a run dropped, or with `dry_run` would drop.

    `retained` counts states that stay restorable for certain; `pruned` state changes whose states
    are gone; `blobs` and `bytes` what is deleted from the blob store; `leftovers` files and copies
    that were no blobs.
    """

    dry_run: bool
    retained: int = 0
    pruned: int = 0
    snapshots: int = 0
    blobs: int = 0
    bytes: int = 0
    leftovers: int = 0


@dataclass(slots=True)
class _Kept:
    """What the ways to retained states need; `covered` are the states along them."""

    events: set[int] = field(default_factory=set)
    anchors: set[int] = field(default_factory=set)
    covered: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Plan:
    retained: int
    seqs: tuple[int, ...]
    nodes: tuple[int, ...]
    anchors: tuple[int, ...]


def collect(
    history: History,
    *,
    dry_run: bool,
    grace_s: float = MIN_GRACE_S,
    caller: Caller = ANYONE,
    progress: Progress | None = None,
    now_us: Callable[[], int] | None = None,
) -> GcReport:
    """Prune one model's log, then delete what no log of the store refers to.

    Raises InvalidRequest for a grace period below MIN_GRACE_S, which a writer may take between its
    blob and its event; SharedBlobs where another ledger keeps its blobs at the same place.
    """
    if grace_s < MIN_GRACE_S:
        raise InvalidRequest(
            f"the grace period must be at least {MIN_GRACE_S} s, got {grace_s}", param="grace_s"
        )
    told = progress or (lambda what, done: None)
    history.store.home.tenancy.require_alone()
    cutoff = (now_us or history.blobs.now)() - int(grace_s * 1_000_000)
    first = plan = _plan(history, history.head(), cutoff, told)
    report = GcReport(dry_run, plan.retained, len(plan.seqs), len(plan.nodes))
    try:
        if not dry_run and (plan.seqs or plan.nodes):
            _require_whole(history, plan.anchors)
            plan = _with_room(history, lambda: _mark(history, first, cutoff, caller, told))
            report.retained, report.pruned, report.snapshots = (
                plan.retained,
                len(plan.seqs),
                len(plan.nodes),
            )
        _sweep(history, plan, cutoff, report, told)
    finally:
        history.store.home.take_back()
    return report


def _require_whole(history: History, nodes: Sequence[int]) -> None:
    """Raise CorruptLedger unless the snapshots that are to be relied on verify.

    What goes may be the only other way to the same states.
    """
    read: set[bytes] = set()
    for snapshot in history.store.snapshots():
        if snapshot.node not in nodes:
            continue
        try:
            for digest in history.ways.anchor_state(snapshot).digests.values():
                if digest not in read:
                    history.blobs.get(digest)
                    read.add(digest)
        except CorruptLedger as error:
            raise CorruptLedger(
                f"nothing was dropped: the snapshot at event {snapshot.node}, which has to stay, is"
                f" damaged ({error}); `weightledger repair` writes it anew",
                seq=snapshot.node,
            ) from error


def _mark(history: History, first: _Plan, cutoff: int, caller: Caller, told: Progress) -> _Plan:
    """Say in the log what goes; planned anew when the log has moved on meanwhile."""
    planned = {history.head().seq: first}

    def propose(head: Event) -> Stateless:
        plan = planned.get(head.seq) or _plan(history, head, cutoff, told)
        planned.clear()
        planned[head.seq] = plan
        body = pruning.body(plan.seqs, plan.nodes, plan.retained)
        draft = Draft(
            body=body,
            state_after=head.state_after,
            number=history.pruned.runs,
        )
        return draft, Attached(dropped_snapshots=plan.nodes)

    append_stateless(history, propose, caller=caller)
    (plan,) = planned.values()
    return plan


def _plan(history: History, head: Event, cutoff: int, told: Progress) -> _Plan:
    pruned = history.pruned
    if pruned.unread:
        raise CorruptLedger(
            f"nothing was dropped: {pruned.unread} of the {pruned.runs} events that say what gc "
            "dropped before are damaged; `weightledger verify` names the first bad event"
        )
    anchors = {anchor.node: anchor for anchor in history.store.snapshots()}
    costs = {at: max(anchor.size, 1) for at, anchor in anchors.items()}
    retained = {head.node} | _named(history) | _followed(history)
    prunable: list[int] = []
    for event in history.store.scan(0, head.seq + 1):
        if event.kind not in STATE_CHANGING or pruned(event.seq):
            continue
        if event.recorded_at >= cutoff:
            retained.add(event.node)
        if event.kind in _PRUNABLE and event.blobs:
            prunable.append(event.seq)
        told("events read", event.seq + 1)
    kept = _Kept()
    for node in sorted(retained):
        _keep(history, node, costs, pruned, kept)
    return _Plan(
        len(kept.covered & retained),
        tuple(seq for seq in prunable if seq not in kept.events),
        tuple(sorted(anchors.keys() - kept.anchors)),
        tuple(sorted(kept.anchors)),
    )


def _named(history: History) -> set[int]:
    """The states that versions name which are listed or under legal hold."""
    listed = {version.node for version in history.store.listed_versions()}
    return listed | set(holds.held_states(history.store).values())


def _followed(history: History) -> set[int]:
    """The states that a rollout holds replicas at, that a trial leads back to, and those that
    replicas are known to show."""
    held = rollouts.held_nodes(rollouts.newest(history.store)) | trials.held_nodes(history)
    standing = [one.standing for one in history.store.replicas.all() if one.leased]
    return held | {one.node for one in standing if one.node is not None}


def _keep(
    history: History,
    node: int,
    costs: dict[int, int],
    pruned: pruning.Prunings,
    kept: _Kept,
) -> None:
    """Keep what restoring one state takes, unless what is kept already restores it."""
    if node in kept.covered:
        return
    parent = history.lineage.parent(node)
    if parent in kept.covered and not pruned(node):
        kept.events.add(node)
        kept.covered.add(node)
        return
    with contextlib.suppress(Pruned):  # a young state that stood on one pruned before
        path = lineage.cheapest(history.lineage, costs, node, pruned)
        kept.anchors.add(path.start)
        kept.events.update(path.undo, path.redo)
        kept.covered.update((path.start, *path.redo))
        for seq in path.undo:
            above = history.lineage.parent(seq)
            assert above is not None
            kept.covered.add(above)


def _sweep(
    history: History,
    plan: _Plan,
    cutoff: int,
    report: GcReport,
    told: Progress,
) -> None:
    blobs = history.blobs
    # Listed first: what is referred to by the time it is asked may have been put meanwhile.
    old = {blob.digest: blob for blob in blobs.stored() if blob.touched_at < cutoff}
    for digest in _referenced(history, set(plan.seqs), set(plan.nodes), told):
        old.pop(digest, None)
    home = history.store.home
    for name in home.models():
        if name != history.model:
            other = History(home.model(name), history.pool)
            for digest in _referenced(other, set(), set(), told):
                old.pop(digest, None)

    def delete(blob: Stored) -> bool:
        return blobs.delete_unreferenced(blob.digest, cutoff, last_touched=blob.touched_at)

    for done, blob in enumerate(old.values(), 1):
        if report.dry_run or _with_room(history, partial(delete, blob)):
            report.blobs += 1
            report.bytes += blob.size
        told("blobs deleted", done)
    if not report.dry_run:
        report.leftovers = blobs.sweep(cutoff)


def _with_room(history: History, step: Callable[[], Step]) -> Step:
    """Do a step that writes; on a full disk with the room that is kept for it, until it is taken
    back.

    Raises StorageFull, which says what to do, when that does not do.
    """
    with contextlib.suppress(StorageFull):
        return step()
    with contextlib.suppress(StorageFull):  # the write that found no room has cut the journal
        return step()
    history.store.home.give_way()
    try:
        return step()
    except StorageFull as error:
        raise StorageFull(
            f"{error.args[0]}. Collecting has to write a little itself: make a few MiB of room on"
            " that disk and run it again, it goes on where it stopped"
        ) from error


def referenced(history: History) -> Iterator[bytes]:
    """Every blob that a log needs; some more than once."""
    return _referenced(history, set(), set(), lambda what, done: None)


def _referenced(
    history: History, seqs: set[int], nodes: set[int], told: Progress
) -> Iterator[bytes]:
    """Every blob that a log needs, but for the events and snapshots that are to go."""
    pruned = history.pruned
    for anchor in history.store.snapshots():
        if anchor.node not in nodes:
            yield anchor.manifest
            yield from read_manifest(history.blobs.get(anchor.manifest)).digests.values()
    for event in history.store.scan():
        if event.seq not in seqs and not pruned(event.seq):
            yield from event.blobs
        told("references read", event.seq + 1)
