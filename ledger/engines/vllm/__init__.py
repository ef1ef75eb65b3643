"""Driving a vLLM (or Aphrodite) server from the ledger.

Two sides, joined by a backend named "ledger" that vLLM's own weight-transfer routes reach:

- here, `engine.VllmEngine` holds the ledger's state in host memory and drives the server over HTTP;
- in the server's workers, a plugin reads the tensors of a state from the ledger's database itself.

The backend is told what to do through the info of two routes. `/init_weight_transfer_engine`:
`stage` reads and verifies tensors on the side, `confirm` fails unless the worker holds a state.
`/update_weights`: loads what is staged. So all that can fail for want of a database, a tensor or a
digest fails before the model is touched, and every worker answers for itself. Before an update is
in the log at all, `try` has each worker load what a writer proposes into copies.

The names of the model's tensors are those of its checkpoint folder, which is what vLLM loads by.
"""

from dataclasses import dataclass

BACKEND = "ledger"
"""`--weight-transfer-config '{"backend": "ledger"}'`"""

UNSETTLED = "ledger:updating"
"""The weight version while an update is under way: no state of any ledger."""


@dataclass(frozen=True, slots=True)
class StateRef:
    """A state of the ledger: the seq of its last state change, and its digest, 32 bytes."""

    seq: int
    digest: bytes

    @property
    def version(self) -> str:
        """What the server calls its weights then: `ledger:{seq}:{first 8 bytes of the digest}`."""
        return f"ledger:{self.seq}:{self._state}"

    def named_by(self, version: str | None) -> bool:
        """Whether a weight version names this state, whichever event last led to it."""
        prefix, _, state = (version or "").rpartition(":")
        return prefix.startswith("ledger:") and state == self._state

    @property
    def _state(self) -> str:
        return self.digest.hex()[:16]
