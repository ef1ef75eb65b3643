"""Versions side by side: the live one is a reference, holding it is the lease.

Publishing assigns that reference. A reader that took the old version keeps it until done; tensors
that only it used go with it.
"""

import contextlib
import gc
import queue
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Protocol, Self

import msgspec
import torch
from msgspec.structs import replace
from torch import nn

from weightledger.ledger import interrupts
from weightledger.ledger.engines.counters import Counters, Rota
from weightledger.ledger.engines.line import Built, Private
from weightledger.ledger.errors import Conflict, LedgerError, UnsupportedModel
from weightledger.ledger.tensors.persistent import PersistentMap


class Adapted(Protocol):
    """A version through one adapter."""

    def leased(self) -> nn.Module:
        """The model to infer with, for one reader."""


Replica = Callable[[Mapping[str, torch.Tensor]], nn.Module]
"""Makes a module with the values of these tensors that shares nothing with any other."""


class LiveVersion(msgspec.Struct, frozen=True, weakref=True):
    """One committed state: `tensors` by bare name, `seq` and `digest` of its last change.

    `adapted` has the version through each adapter of the state, by the adapter's name. `private`
    makes the module of one reader, where readers cannot share `built`.
    Entering it as a context manager does nothing: the reference is what holds it.
    """

    tensors: Mapping[str, torch.Tensor]
    seq: int
    digest: bytes
    built: nn.Module | None
    adapted: Mapping[str, Adapted] = msgspec.field(default_factory=dict)
    private: Private | None = None

    @property
    def module(self) -> nn.Module:
        """The model to infer with. Raises UnsupportedModel where only tensors are held."""
        return _module(self.built)

    def leased(self) -> "LiveVersion":
        """This version as one reader holds it."""
        if self.private is None:
            return self
        own = self.private()
        # Whoever holds only the module holds the version.
        weakref.finalize(own, _let_go, self.built).atexit = False
        return replace(self, built=own, private=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Candidate(msgspec.Struct, frozen=True):
    """A next version that nobody sees yet; `tensors` are the ones it replaces, `whole` all of it,
    `base` those of the version it was prepared on. `built` is None where nothing is replaced."""

    tensors: Mapping[str, torch.Tensor]
    built: Built | None
    whole: PersistentMap[torch.Tensor]
    base: PersistentMap[torch.Tensor]
    replica: Replica | None = None
    adapted: Mapping[str, Adapted] = msgspec.field(default_factory=dict)

    @property
    def module(self) -> nn.Module:
        """A module in this state that shares nothing with what is or will be live, made each time
        it is asked for: whoever scores it may do with it what they like.

        UnsupportedModel where only tensors are held.
        """
        return _module(self.replica and self.replica(self.whole))


class Versions:
    """The current version, what came before it and is still held, and the write counters."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = PersistentMap(tensors)
        self.adapted: Mapping[str, Adapted] = {}
        self._counters = Counters(self.tensors)
        self._rota = Rota(list(tensors))
        self._current: LiveVersion | None = None
        self._past: list[weakref.ref[LiveVersion | nn.Module]] = []
        # The one queue that may be put to while objects are being destroyed.
        self._released: queue.SimpleQueue[None] = queue.SimpleQueue()

    def current(self) -> LiveVersion:
        """The live version; raises LedgerError before the first one is published."""
        version = self._current
        if version is None:
            raise unpublished()
        return version

    def check_untouched(self, names: Collection[str] | None = None) -> None:
        """Raise WeightsChangedOutside if a live tensor was written since it was published.

        With `names` only those are looked at and, in turn, some of the others.
        """
        self._counters.check(None if names is None else {*names, *self._rota.turn()})

    def require_newest(self, candidate: Candidate) -> None:
        """Raise Conflict if another version was published since this one was prepared."""
        if candidate.base is not self.tensors:
            raise Conflict("another version was published after this one was prepared")

    def publish(
        self,
        candidate: Candidate,
        seq: int,
        digest: bytes,
        built: nn.Module | None = None,
        private: Private | None = None,
    ) -> None:
        """Make `candidate` current, with this module. Raises Conflict if another one was published
        since."""
        self.require_newest(candidate)
        version = LiveVersion(candidate.whole, seq, digest, built, candidate.adapted, private)
        before = self._current
        self._counters = self._counters.replaced(candidate.whole, candidate.tensors)
        self.tensors = candidate.whole
        self.adapted = candidate.adapted
        self._current = version
        if before is not None and before.tensors is not candidate.whole:
            self._count_past(before)

    def renew(
        self, built: nn.Module, private: Private | None, adapted: Mapping[str, Adapted]
    ) -> None:
        """Let later leases get these modules of the current version."""
        before = self.current()
        self.adapted = adapted
        self._current = replace(before, built=built, private=private, adapted=adapted)
        if before.built is not built:
            self._count_past(before)

    def held(self) -> int:
        """How many past versions somebody still holds."""
        self._past = [past for past in self._past if past() is not None]
        return len(self._past)

    def wait_for_readers(self, most: int, timeout_s: float) -> bool:
        """Wait until at most `most` past versions are held; False if they are not by then."""
        if self.held() <= most:
            return True
        # A module that refers to itself goes only when garbage is collected.
        gc.collect()
        deadline = time.monotonic() + timeout_s
        while True:
            self._forget_released()
            if self.held() <= most:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with contextlib.suppress(queue.Empty):
                self._released.get(timeout=min(left, interrupts.LOOK_UP_S))
            interrupts.handle()

    def _count_past(self, version: LiveVersion) -> None:
        released = self._released
        self._past.append(weakref.ref(version.built or version, lambda _: released.put(None)))
        self._forget_released()

    def _forget_released(self) -> None:
        with contextlib.suppress(queue.Empty):
            while not self._released.empty():  # nearly always: an error would cost more than that
                self._released.get_nowait()


def unpublished() -> LedgerError:
    """What a lease says before the engine follows a log."""
    return LedgerError("the engine follows no log yet: hand it to a Ledger first")


def _let_go(held: object) -> None:
    """Nothing: what is held goes with the call."""


def _module(built: nn.Module | None) -> nn.Module:
    if built is None:
        raise UnsupportedModel(
            "only tensors are held here, without a module: infer where the model is served"
        )
    return built
