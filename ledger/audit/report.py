"""What a verification says."""

from dataclasses import dataclass


@dataclass(slots=True)
class Report:
    """What a verification covered, and the first thing that did not hold.

    Events before `since` were taken as they are, but for the hash tree over them.
    `pruned` counts state changes whose states gc made unreachable: of these the chain and the
    digests were checked, but no bits rebuilt. `bad_seq` is the first bad event, None when the
    trouble has no seq or there is none.
    """

    model: str
    since: int = 0
    events: int = 0
    states: int = 0
    tensors: int = 0
    payload_bytes: int = 0
    snapshots: int = 0
    pruned: int = 0
    head_seq: int | None = None
    head_digest: bytes | None = None
    head_hash: bytes | None = None
    tree_root: bytes | None = None
    problem: str | None = None
    bad_seq: int | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None
