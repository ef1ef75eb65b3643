"""Causal what-ifs shared out: each altered state is a task, and so is the proof that they have in
common, that everything comes to the recorded bits again.

What it proves it proves of processors like the one it ran on, with as many threads: a state that
another kind worked out is worked out again here. The events of one state are worked out one after
the other, whatever is shared: each is on what the one before it led to.
"""

import contextlib
import importlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from weightledger.ledger.debug.diff import differing
from weightledger.ledger.debug.measured import TensorDiff, measure
from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.debug.whatif.causal import AlteredState, causal, prove, staged_at
from weightledger.ledger.debug.whatif.derivations import derivation_modules, derived
from weightledger.ledger.debug.whatif.parallel import from_plain, plain
from weightledger.ledger.debug.whatif.selection import Selected
from weightledger.ledger.debug.whatif.state import WhatIf
from weightledger.ledger.errors import CannotDerive
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.reading import reading
from weightledger.ledger.parallel import Executor, Task, Told, in_order
from weightledger.ledger.parallel.shares import worth

_HERE = "weightledger.ledger.debug.whatif.causal_parallel"

# Bytes of tensors that updates are worked out on and hashed again in a second.
_DERIVED_BYTES_A_SECOND = 1 << 28


def causal_by(
    executor: Executor,
    history: History,
    at: Position,
    asked: Sequence[Selected],
    out: Path | None = None,
) -> list[WhatIf | CannotDerive] | None:
    """What `causal` gives or raises of each, without tensors; the state of a single one is written
    to `out` where that is given.

    None, and nothing is written, where sharing would gain nothing, or where how an event is worked
    out is known to this program alone.
    """
    modules = derivation_modules()
    if executor.jobs == 1 or "__main__" in modules:
        return None
    actual = history.digests(at.node)
    sizes = {name: spec.nbytes for name, spec in actual.specs.items()}
    if worth(_seconds(history, asked, sizes), executor) < 2:
        return None
    longest = min(asked, key=lambda one: one.way[0])
    before = ReplayedState(history.model, at.node, actual, {})
    where = {
        "url": history.store.home.url,
        "model": history.model,
        "modules": modules,
        "threads": torch.get_num_threads(),
    }
    firsts = sorted({one.way[0] for one in asked})
    proof = Task(
        f"{_HERE}:proved",
        {**where, "base": longest.base, "way": list(longest.way), "firsts": firsts},
    )
    altered = [
        Task(
            f"{_HERE}:altered",
            {
                **where,
                "base": one.base,
                "way": list(one.way),
                "without": [event.seq for event in one.without],
                "file": None if out is None else str(out.absolute()),
                "words": WhatIf("causal", at, one.without, before, before).words,
            },
        )
        for one in asked
    ]
    first, *told = in_order(executor.run([proof, *altered]), 1 + len(altered))
    found: list[WhatIf | CannotDerive] = []
    for one, part in zip(asked, told, strict=True):
        if part["processor"] == first["processor"]:
            found.append(_found(at, one, before, first["failed"], part))
        else:
            found.append(_here(history, at, one, out))
    return found


def proved(
    told: Told,
    url: str,
    model: str,
    modules: Sequence[str],
    threads: int,
    base: int,
    way: Sequence[int],
    firsts: Sequence[int],
) -> dict[str, Any]:
    """Work events out again as they were; seq and words of those that do not come to the recorded
    bits, up to one behind the last of `firsts`, where a what-if begins."""
    failed: list[list[Any]] = []
    with _as_asked(modules, threads), reading(url, model) as history:
        walker = Walker(history)
        actual = staged_at(history, walker.to(base))
        for done, event in enumerate(history.require_all(way), 1):
            try:
                prove(actual, event, derived(history, event, actual.specs))
            except CannotDerive as error:
                failed.append([error.seq, str(error)])
                if event.seq >= firsts[-1]:
                    break
                actual = staged_at(history, walker.to(event.seq))
            told(done, len(way))
    return {"failed": failed, "processor": _processor()}


def altered(
    told: Told,
    url: str,
    model: str,
    modules: Sequence[str],
    threads: int,
    base: int,
    way: Sequence[int],
    without: Sequence[int],
    file: str | None,
    words: str,
) -> dict[str, Any]:
    """Work events out again without some of them: what moved and how, or what is in the way."""
    left_out = set(without)
    with _as_asked(modules, threads), reading(url, model) as history:
        state = Walker(history).to(base)
        one = AlteredState(staged_at(history, state))
        try:
            for done, event in enumerate(history.require_all(way), 1):
                if event.seq not in left_out:
                    one.take(event, derived(history, event, one.staged.specs))
                told(done, len(way))
        except CannotDerive as error:
            return {"failed": [error.seq, str(error)], "processor": _processor()}
        node = way[-1]
        after = one.replayed(state, node)
        actual = history.digests(node)
        names = sorted(differing(actual, after.digest))
        there = [name for name in names if name in actual.specs]
        old = history.tensors(node, actual.value, there)
        if file is not None:
            after.write(Path(file), words)
    sides = [
        {name: (specs[name], tensors[name]) for name in names if name in tensors}
        for specs, tensors in ((actual.specs, old), (after.digest.specs, after.tensors))
    ]
    measured = [measure(name, sides[0].get(name), sides[1].get(name), "none") for name in names]
    new = after.digest
    return {
        "failed": None,
        "processor": _processor(),
        "moved": {name: plain(new.specs.get(name), new.digests.get(name)) for name in names},
        "measured": [one.to_plain() for one in measured],
        "derived": one.again,
        "not_asked": one.not_asked,
        "refused": one.refused,
    }


def _found(
    at: Position,
    asked: Selected,
    before: ReplayedState,
    failed: Sequence[Sequence[Any]],
    part: Mapping[str, Any],
) -> WhatIf | CannotDerive:
    """One of them, as a single process would have said it: the first that is in the way, of the
    same event that which was to be proved."""
    ways = [tuple(one) for one in failed if one[0] >= asked.way[0]]
    ways += [tuple(part["failed"])] if part["failed"] is not None else []
    if ways:
        seq, message = min(ways, key=lambda one: one[0])
        return CannotDerive(message, seq=seq)
    moved = {name: from_plain(*one) for name, one in part["moved"].items()}
    return WhatIf(
        "causal",
        at,
        asked.without,
        ReplayedState(before.model, before.seq, before.digest.moved(moved), {}),
        before,
        part["derived"],
        part["not_asked"],
        tuple(part["refused"]),
        measured=[TensorDiff.from_plain(one) for one in part["measured"]],
    )


def _seconds(history: History, asked: Sequence[Selected], sizes: Mapping[str, int]) -> float:
    """About how long one process would take for all of them; `sizes` are the tensors' in bytes."""
    longest = min((one.way for one in asked), key=lambda way: way[0])
    touched = {
        event.seq: sum(sizes.get(change.name, 0) for change in event.changes)
        for event in history.require_all(longest)
    }
    each = (sum(touched[seq] for seq in one.way) + sum(sizes.values()) for one in asked)
    return 2 * sum(each) / _DERIVED_BYTES_A_SECOND


def _here(
    history: History, at: Position, asked: Selected, out: Path | None
) -> WhatIf | CannotDerive:
    """One of them by this process alone."""
    try:
        found = causal(history, at, asked)
    except CannotDerive as error:
        return error
    if out is not None:
        found.state.write(out, found.words)
    return found


@contextlib.contextmanager
def _as_asked(modules: Sequence[str], threads: int) -> Iterator[None]:
    """Know how each operation is worked out again, on as many threads as who asks: another number
    may come to other last bits."""
    for module in modules:
        importlib.import_module(module)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _processor() -> str:
    """What decides about last bits beside the number of threads."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line} {torch.backends.cpu.get_cpu_capability()} {torch.__version__}"
    return f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()} {torch.__version__}"
