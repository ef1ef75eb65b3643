"""A mechanical what-if shared out by tensors: each task takes the differences out of its own.

What several find is put together to what one would have said; the state goes into a file, where one
is asked for, and into no process as a whole.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightledger.ledger.debug.diff import differing
from weightledger.ledger.debug.laid_out import begin, fill, retell
from weightledger.ledger.debug.measured import TensorDiff, measure
from weightledger.ledger.debug.walking import ReplayedState
from weightledger.ledger.debug.whatif.mechanical import changed_by, require_defined, take_out
from weightledger.ledger.debug.whatif.selection import Selected, select
from weightledger.ledger.debug.whatif.state import WhatIf
from weightledger.ledger.events.changes import WHOLE
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.reading import reading
from weightledger.ledger.parallel import Executor, Task, Told, in_order
from weightledger.ledger.parallel.shares import Share, shares, worth
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.tensors.state import StateDigest

_HERE = "weightledger.ledger.debug.whatif.parallel"

# Bytes of a state that are read, copied and hashed in a second, and of tensors that are compared
# before and after each event.
_STATE_BYTES_A_SECOND, _COMPARED_BYTES_A_SECOND = 1 << 29, 1 << 28


def mechanical_by(
    executor: Executor, history: History, at: Position, selected: Selected, out: Path | None
) -> WhatIf | None:
    """What `mechanical` gives, without tensors; its state is written to `out` where that is given.

    None, and nothing is written, where sharing would gain nothing, or tensors came, went or are
    taken as a whole: few and small, such as adapters.
    """
    if any(change.form == WHOLE for event in selected.without for change in event.changes):
        return None
    actual = history.digests(at.node)
    parts = _shares(history, actual, selected, executor, out is not None)
    if len(parts) < 2:
        return None
    before = ReplayedState(history.model, at.node, actual, {})
    if out is not None:
        planned = WhatIf("mechanical", at, selected.without, before, before)
        begin(out, before.named_specs, before.metadata(planned.words))
    data = {
        "url": history.store.home.url,
        "model": history.model,
        "node": at.node,
        "without": [event.seq for event in selected.without],
        "file": None if out is None else str(out.absolute()),
    }
    tasks = [Task(f"{_HERE}:share_of", {**data, "share": one.to_json()}) for one in parts]
    told = in_order(executor.run(tasks), len(tasks))
    again = sorted({seq for one in told for seq in one["touched_again"]})
    require_defined(selected, list(history.require_all(again)))
    moved = {name: from_plain(*one) for part in told for name, one in part["moved"].items()}
    after = ReplayedState(history.model, at.node, actual.moved(moved), {})
    measured = [TensorDiff.from_plain(one) for part in told for one in part["measured"]]
    found = WhatIf("mechanical", at, selected.without, after, before, measured=measured)
    if out is not None:
        retell(out, after.metadata(found.words))
    return found


def share_of(
    told: Told,
    url: str,
    model: str,
    node: int,
    without: Sequence[int],
    share: Mapping[str, Any],
    file: str | None,
) -> dict[str, Any]:
    """A share's tensors without some events: what moved and how, and who touched it again."""
    mine = Share(**share)
    with reading(url, model) as history:
        at = history.resolve(f"seq:{node}")
        selected = select(history, at, [f"seq:{seq}" for seq in without])
        names = frozenset(mine.of(changed_by(selected)))
        out, actual = take_out(history, at, selected, names)
        if out.touched_again:
            return {
                "touched_again": [event.seq for event in out.touched_again],
                "moved": {},
                "measured": [],
            }
        after, moved = out.put_back(actual)
        if file is not None:
            others = [name for name in mine.of(after.digest.specs) if name not in after.tensors]
            tensors = {**after.tensors, **history.tensors(node, at.state, others)}
            named = {name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items()}
            for alias, first in after.digest.aliases.items():
                if first in tensors:
                    named[alias.removeprefix(WEIGHTS)] = tensors[first]
            fill(Path(file), named)
    sides = [
        {n: (one.digest.specs[n], one.tensors[n]) for n in names if n in one.tensors}
        for one in (actual, after)
    ]
    changed = sorted(differing(actual.digest, after.digest) & names)
    measured = [measure(n, sides[0].get(n), sides[1].get(n), "none") for n in changed]
    return {
        "touched_again": [],
        "moved": {name: plain(*one) for name, one in moved.items()},
        "measured": [one.to_plain() for one in measured],
    }


def _shares(
    history: History,
    actual: StateDigest,
    selected: Selected,
    executor: Executor,
    to_file: bool,
) -> list[Share]:
    """The shares of the tensors that are worth a task each; of all of them where they are written,
    else of those that the events changed."""
    names = changed_by(selected)
    work = {name: spec.nbytes if to_file else 0 for name, spec in actual.specs.items()}
    seconds = sum(work.values()) / _STATE_BYTES_A_SECOND
    compared = 0
    for event in history.require_all(selected.way) if executor.jobs > 1 else ():
        for change in event.changes:
            spec = actual.specs.get(change.name)
            if change.name in names and spec is not None:
                compared += 2 * spec.nbytes
                work[change.name] += 2 * spec.nbytes
    seconds += compared / _COMPARED_BYTES_A_SECOND
    work = {name: size for name, size in work.items() if to_file or name in names}
    return shares(work, worth(seconds, executor))


def plain(spec: TensorSpec | None, digest: bytes | None) -> list[Any]:
    """What a tensor became, None for one that is gone, as JSON can say it."""
    return [
        None if spec is None else [spec.name, spec.dtype, list(spec.shape)],
        None if digest is None else digest.hex(),
    ]


def from_plain(
    spec: Sequence[Any] | None, digest: str | None
) -> tuple[TensorSpec | None, bytes | None]:
    """What `plain` was given."""
    return (
        None if spec is None else TensorSpec(spec[0], spec[1], tuple(spec[2])),
        None if digest is None else bytes.fromhex(digest),
    )
