"""VllmEngine: the ledger's state in host memory, and a server that is kept at it.

The server never decides what the state is. It is asked which state it shows; what it lacks is
pushed; when it cannot be brought to a new state it goes back to the one before, and when that fails
too the replica is fenced until it converges.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.engines.state import StateEngine
from weightledger.ledger.engines.versions import Candidate, LiveVersion
from weightledger.ledger.engines.vllm import StateRef
from weightledger.ledger.engines.vllm.adapters import WrittenAdapter, written
from weightledger.ledger.engines.vllm.fused import whole_groups
from weightledger.ledger.engines.vllm.server import Server
from weightledger.ledger.engines.vllm.update import DrivenServer, Timing
from weightledger.ledger.errors import Conflict, EngineUnavailable, InvalidRequest, PublishFailed
from weightledger.ledger.tensors.spec import TensorSpec

logger = logging.getLogger(__name__)

_PAUSES_S = (0.1, 0.4)  # before the second and the third attempt


class VllmEngine:
    """Drives a vLLM or Aphrodite server that runs with the backend "ledger".

    `tensors` are the checkpoint's, by its names. `model` is the name in the ledger; `database` is
    where the server's workers find it, unless WEIGHTLEDGER_DATABASE tells them. `adapter_root` is
    a folder that the server reads too: the state's adapters are written there, and what it has
    loaded from there is the ledger's to unload. Without one, adapters are refused.
    """

    mode = "remote"

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        server: Server,
        *,
        model: str,
        database: str | None,
        adapter_root: Path | None = None,
        pauses_s: Sequence[float] = _PAUSES_S,
    ) -> None:
        self._host = StateEngine(tensors)
        self._server = server
        self._replica = DrivenServer(server, model, database)
        self._pauses_s = pauses_s
        self._shown: StateRef | None = None
        self._fault: str | None = None
        self._timing: Timing | None = None
        # A pause whose answer was not waited for may begin after whatever was done about it.
        self._may_pause_late = False
        self._adapters: dict[str, Path] = {}
        self._adapter_root = adapter_root.resolve() if adapter_root else None
        self._recorded: Mapping[str, WrittenAdapter] = {}

    # The ledger's side

    def specs(self) -> Mapping[str, TensorSpec]:
        """Tensors of the checkpoint by name."""
        return self._host.specs()

    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors."""
        return self._host.aliases()

    def tensor(self, name: str) -> torch.Tensor:
        """The ledger's copy of that tensor; read only."""
        return self._host.tensor(name)

    def check_untouched(self, names: Collection[str] | None = None) -> None:
        """Raise EngineUnavailable unless the server shows the published state."""
        self._host.check_untouched(names)
        self._require_shown(self._replica.shows)

    def prepare(self, tensors: Mapping[str, torch.Tensor]) -> Candidate:
        """The tensors of the next state, checked; the server hears nothing yet."""
        return replace(self._host.prepare(tensors), adapted=self._recorded)

    def prepare_with(
        self, tensors: Mapping[str, torch.Tensor], adapters: Mapping[str, Adapter]
    ) -> Candidate:
        """The same with these adapters and no others, written to folders that it can load."""
        made = {name: self._written(adapter) for name, adapter in adapters.items()}
        return replace(self._host.prepare(tensors), adapted=made)

    def ready(self, adapter: Adapter) -> None:
        """Write the folder that the server will load it from."""
        self._written(adapter)

    def transposed(self, module: str) -> bool | None:
        """Not known: the server's modules are its own."""
        return None

    def lease(self) -> LiveVersion:
        """The ledger's copy: `.tensors`, `.seq`, `.digest`; infer by asking the server itself."""
        return self._host.lease()

    def held_versions(self) -> int:
        """How many past states somebody in this process still holds."""
        return self._host.held_versions()

    def wait_for_readers(self, most: int, timeout_s: float) -> bool:
        """Wait until at most that many past states are held here."""
        return self._host.wait_for_readers(most, timeout_s)

    # The server's side

    @property
    def fault(self) -> str | None:
        """Why the server is not known to show the published state."""
        return self._fault

    def publish(self, prepared: Candidate, *, seq: int, digest: bytes) -> None:
        """Bring the server to a prepared state; see RemoteEngine for the three ways this ends."""
        if prepared.base is not self._host.prepare({}).base:
            raise Conflict("another version was published after this one was prepared")
        target = StateRef(seq, digest)
        fault = None
        try:
            self._bring(target, list(prepared.tensors), _folders(prepared))
        except PublishFailed:
            raise
        except EngineUnavailable as error:
            logger.error("fenced: %s", error)
            fault = str(error)
        self._host.publish(prepared, seq=seq, digest=digest)
        self._shown, self._fault = target, fault
        self._recorded = _folders(prepared)

    def converge(self) -> None:
        """Bring the server to the published state if it does not show it."""
        if self._shown is None:
            return
        try:
            if self._fault is None and self._replica.shows(self._shown):
                if not (self._may_pause_late and self._server.paused()):
                    return
                self._fault = f"{self._server.url} was paused by an update that was given up"
            self._fault = self._fault or self._lost()
            self._drive(self._shown, self._shown, [], self._recorded)
        except EngineUnavailable as error:
            self._fault, self._may_pause_late = str(error), True
            raise
        logger.info("%s shows %s", self._server.url, self._shown.version)
        self._fault = None

    def confirm(self) -> None:
        """Ask every worker; EngineUnavailable unless all hold the published state."""
        self._require_shown(self._replica.held)

    def rehearse(self, proposal: str, *, seq: int, digest: bytes) -> None:
        """Have every worker load a proposed state into copies; EngineUnavailable says which did
        not and why. Nothing where nothing is shown yet."""
        if self._shown is not None:
            self._replica.attempt(StateRef(seq, digest), proposal, self._shown)

    def report(self) -> Mapping[str, Any]:
        """Where the server is, what its weights are called, and the times of the last update."""
        timing = self._timing
        return {
            "url": self._server.url,
            "weight_version": self._shown.version if self._shown else None,
            "stage_ms": round(timing.stage_s * 1e3, 3) if timing else None,
            "pause_ms": round(timing.pause_s * 1e3, 3) if timing else None,
            "adapters": {
                name: str(folder) for name, folder in self._wanted(self._recorded).items()
            },
        }

    # Adapters

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Serve the adapter in a folder under a name, in place of any of that name, unrecorded.

        `DynamicModelManager.load_adapter` records one as an event and is the better way.
        Raises InvalidRequest for the folder that the name is served from already: the server would
        go on using keys and values it computed with the old weights. Changed weights need a new
        folder, as `adapters.write_adapter` gives one.
        """
        path = Path(folder).resolve()
        if self._adapters.get(name) == path:
            raise InvalidRequest(
                f"adapter {name!r} is served from {path} already; changed weights need a new "
                "folder",
                param="folder",
            )
        loaded = self._server.adapters()
        self._server.load_adapter(name, str(path), replace=name in loaded)
        self._adapters[name] = path

    def unload_adapter(self, name: str) -> None:
        """Stop serving an adapter."""
        self._server.unload_adapter(name)
        self._adapters.pop(name, None)

    def close(self) -> None:
        """Give back the connections."""
        self._server.close()

    # Ways there and back

    def _require_shown(self, asked: Callable[[StateRef], bool]) -> None:
        if self._shown is None:
            return
        if self._fault is None:
            try:
                self._fault = None if asked(self._shown) else self._lost()
            except EngineUnavailable as error:
                self._fault = str(error)
        if self._fault is not None:
            raise EngineUnavailable(self._fault)

    def _bring(
        self, target: StateRef, changed: list[str], adapters: Mapping[str, WrittenAdapter]
    ) -> None:
        before = self._shown
        failed: EngineUnavailable | None = None
        for pause_s in (0.0, *self._pauses_s):
            time.sleep(pause_s)
            try:
                if self._drive(target, before, changed, adapters) and failed is None:
                    self._may_pause_late = False  # its own pause came after any before it
                return
            except EngineUnavailable as error:
                logger.warning("not brought to %s yet: %s", target.version, error)
                failed, self._may_pause_late = error, True
        assert failed is not None
        if before is None or self._fault is not None:
            raise failed
        try:
            self._drive(before, before, [], self._recorded)
        except EngineUnavailable as error:
            raise EngineUnavailable(
                f"{failed}; and it could not be brought back to {before.version}: {error}"
            ) from failed
        raise PublishFailed(f"{failed}; it shows {before.version}, the state before") from failed

    def _drive(
        self,
        target: StateRef,
        before: StateRef | None,
        changed: list[str],
        adapters: Mapping[str, WrittenAdapter],
    ) -> bool:
        """One attempt. Only what changed is sent if the server shows `before`, else everything.

        Whether anything had to be sent, for which the server was paused and resumed.
        """
        replica = self._replica
        wanted = self._wanted(adapters)

        def settle() -> None:
            self._settle(wanted)

        shown = replica.shows(target) and replica.held(target)
        if shown:
            # An attempt whose answer was lost may have ended here, or before the caches.
            settle()
            replica.rename(target)
            if self._server.paused():
                self._server.reset_caches()
                self._server.resume()
        elif before is not None and before != target and replica.shows(before):
            names = whole_groups(changed, list(self._host.specs()))
            self._timing = replica.update(target, names, before, settle)
        else:
            self._timing = replica.update(target, None, None, settle)
            logger.info("%s was given every tensor of %s", self._server.url, target.version)
        settle()
        return not shown

    def _settle(self, wanted: Mapping[str, Path]) -> None:
        """Have the server serve these adapters, and none but these from the ledger's folder."""
        root = self._adapter_root
        if not wanted and root is None:
            return
        loaded = self._server.adapters()
        for name, path in loaded.items():
            if name not in wanted and root is not None and Path(path).is_relative_to(root):
                self._server.unload_adapter(name)
        for name, folder in wanted.items():
            if loaded.get(name) != str(folder):
                self._server.load_adapter(name, str(folder), replace=name in loaded)

    def _wanted(self, recorded: Mapping[str, WrittenAdapter]) -> dict[str, Path]:
        return self._adapters | {name: made.folder for name, made in recorded.items()}

    def _written(self, adapter: Adapter) -> WrittenAdapter:
        known = self._recorded.get(adapter.name)
        if known is not None and known.adapter.same_tensors(adapter):
            return known
        if self._adapter_root is None:
            raise InvalidRequest("this engine was given no folder to write adapters to")
        return written(self._adapter_root, adapter)

    def _lost(self) -> str:
        assert self._shown is not None
        return (
            f"{self._server.url} does not show {self._shown.version}: it was restarted, or its "
            "weights were changed without the ledger"
        )


def _folders(prepared: Candidate) -> dict[str, WrittenAdapter]:
    return {
        name: made for name, made in prepared.adapted.items() if isinstance(made, WrittenAdapter)
    }
