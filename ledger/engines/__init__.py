"""Engines: what holds live weights.

The contract
------------
- `prepare` builds the next version on the side. Everything that can fail fails there; nothing is
  visible and the live version is untouched.
- `publish` makes a prepared version the live one, at once and whole. It fails only where it changes
  nothing: for a version prepared before another was published (Conflict), and in place for live
  tensors that no longer have their shape (WeightsChangedOutside).
- A lease holds one committed version: its module, the seq of its last state change and its digest.
  In multi-version engines taking a lease is one reference, without a lock or a wait.
- Only the ledger writes to live tensors; `check_untouched` notices when something else did, and
  publishing does not make it forget.
- One writer at a time calls `prepare` and `publish`; any number of threads take leases.
- A remote engine drives a server of its own process, which can be gone, slow or refuse: see
  RemoteEngine for what that changes.
"""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch

from weightledger.ledger.tensors.spec import TensorSpec


class Prepared(Protocol):
    """A next version that nobody sees yet."""

    @property
    def module(self) -> torch.nn.Module:
        """A copy of the candidate, ready to be scored, made each time it is asked for.

        It shares nothing with what is or will be live, so whoever scores it may do anything to it.
        """

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The tensors it replaces, by bare name."""


class Live(Protocol):
    """One committed version, as a lease holds it."""

    @property
    def module(self) -> torch.nn.Module:
        """The model to infer with."""

    @property
    def seq(self) -> int:
        """Seq of the last state-changing event."""

    @property
    def digest(self) -> bytes:
        """Digest of the state, 32 bytes."""


class Engine(Protocol):
    """Holds the live weights of one model."""

    @property
    def mode(self) -> str:
        """`multi-version`, or `inplace` when the caller's own tensors are written."""

    def specs(self) -> Mapping[str, TensorSpec]:
        """Parameters and persistent buffers by bare name; a tied tensor once."""

    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors, each with the first name."""

    def tensor(self, name: str) -> torch.Tensor:
        """The live tensor of that name; read only."""

    def check_untouched(self, names: Collection[str] | None = None) -> None:
        """Raise WeightsChangedOutside if a live tensor was written since it was published.

        With `names`, which an update is about to change, those are looked at and the next few of
        the others in turn, so that an update costs what it changes.
        """

    def prepare(self, tensors: Mapping[str, torch.Tensor]) -> Prepared:
        """The next version with these tensors (now the engine's), the rest as live.

        Raises InvalidRequest for a name, dtype or shape that is not the model's; a tied tensor
        goes by its first name.
        """

    def publish(self, prepared: Any, *, seq: int, digest: bytes) -> None:
        """Make live what this engine's `prepare` gave.

        `prepare({})` gives the live version again: publishing that says which state it is.
        """

    def lease(self) -> AbstractContextManager[Live]:
        """Hold the live version. Raises LedgerError before the first one is published."""

    def held_versions(self) -> int:
        """How many past versions readers still hold; 0 where there is only one version."""

    def wait_for_readers(self, most: int, timeout_s: float) -> bool:
        """Wait until readers hold at most that many past versions; False if they still do not."""


class HeldVersion(Live, Protocol):
    """A version that is held, to be leased from later."""

    def leased(self) -> AbstractContextManager[Live]:
        """The version as one reader holds it."""


@runtime_checkable
class SeveralVersions(Engine, Protocol):
    """An engine that can lease from past versions, too."""

    def hold(self) -> HeldVersion:
        """The live version, for as long as what is given is held."""


@runtime_checkable
class Separable(Engine, Protocol):
    """An engine whose model can be had a second time, to compute with beside what is live."""

    def apart(self) -> Engine:
        """An engine with a copy of the live model, which shares nothing with it and shows nothing
        yet. Raises UnsupportedModel for a model whose copies do not stand alone."""


@runtime_checkable
class RemoteEngine(Engine, Protocol):
    """An engine that drives an inference server in another process.

    `specs`, `tensor`, `prepare` and `lease` are about the ledger's own state, held here. `publish`
    brings the server to it and then either

    - returns, and `fault` is None: the server shows the new state;
    - raises PublishFailed: the server shows the state before, and so does this engine;
    - returns, and `fault` says why the server is not known to show the new state. The replica is
      fenced: `check_untouched` raises EngineUnavailable until `converge` has succeeded.
    """

    @property
    def fault(self) -> str | None:
        """Why the server is not known to show the published state; None when it does."""

    def converge(self) -> None:
        """Bring the server to the published state if it does not show it.

        Raises EngineUnavailable, and leaves it as `fault`, when that cannot be done now.
        """

    def confirm(self) -> None:
        """Ask the server's workers; EngineUnavailable unless all hold the published state."""

    def rehearse(self, proposal: str, *, seq: int, digest: bytes) -> None:
        """Have the server try the state that a proposal leads to, from the one that is shown.

        What it serves stays. EngineUnavailable where the server would not take it, and says why.
        """

    def report(self) -> Mapping[str, Any]:
        """What an operator wants to know of the server, as JSON."""
