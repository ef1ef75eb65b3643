"""Rows of what a writer is about to append, and of what replicas say that they built of it.

They are no part of the log, and gone once it is decided. All times are the database's clock: after
its deadline a proposal is nobody's, whoever made it, and takes no attestation.
"""

import json
import secrets
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.wakeups import Ending, Wake

Incarnation = tuple[str, int]
"""A replica's name, and which of its starts it is."""


class ProposalRow(NamedTuple):
    """An event that may come to be: its header, its payload where that is inline, who is asked to
    build its state, and for how many seconds more."""

    id: str
    asked: frozenset[Incarnation]
    header: bytes
    payload: bytes | None
    left_s: float


class Attestation(NamedTuple):
    """What a replica says of a proposal: the digest of the state it built, or the problem."""

    digest: bytes | None
    problem: str | None


class ProposalProgress(NamedTuple):
    """How a proposal stands: whether its time is not over, what was attested, and who of the fleet
    is within its lease."""

    open: bool
    attested: dict[Incarnation, Attestation]
    leased: frozenset[Incarnation]


class ProposalStore(Protocol):
    """The port: what writers and replicas ask of a store."""

    def propose(
        self, header: bytes, payload: bytes | None, asked: Sequence[Incarnation], timeout_s: float
    ) -> str:
        """Have replicas look at an event; gives the proposal's id. Those whose time is over go."""

    def withdraw(self, proposal: str) -> None:
        """Take a proposal away, with what was attested; one that is gone is fine."""

    def progress(self, proposal: str) -> ProposalProgress:
        """How it stands, in one look."""

    def newest(self) -> str | None:
        """The id of the newest proposal whose time is not over."""

    def wait(
        self,
        after: str | None,
        timeout_s: float,
        wake: Wake = "auto",
        ended: Ending | None = None,
    ) -> str | None:
        """Wait, at most so long and until it has ended, for the newest to be another than `after`;
        gives the newest."""

    def read(self, proposal: str) -> ProposalRow | None:
        """A proposal; None where it is gone."""

    def attest(self, proposal: str, replica: Incarnation, said: Attestation) -> bool:
        """Say what was built of it; False, and nothing is written, where its time is over, it is
        gone, or a newer incarnation of the replica has begun."""


class SqlProposals:
    """`ProposalStore` over SQL."""

    def __init__(self, database: Database, model_id: int) -> None:
        self._database = database
        self._id = model_id
        self._now = database.backend.NOW

    def propose(
        self, header: bytes, payload: bytes | None, asked: Sequence[Incarnation], timeout_s: float
    ) -> str:
        """See `ProposalStore.propose`."""
        now, proposal = self._now, secrets.token_hex(16)
        with self._database.write() as execute:
            execute(f"DELETE FROM proposals WHERE model_id = ? AND deadline <= {now}", (self._id,))
            execute(
                "INSERT INTO proposals"
                " (model_id, proposal, proposed_at, deadline, asked, header, payload)"
                f" VALUES (?, ?, {now}, {now} + ?, ?, ?, ?)",
                (
                    *(self._id, proposal, int(timeout_s * 1_000_000)),
                    *(json.dumps([list(one) for one in asked]), header, payload),
                ),
            )
        self._database.wakeups.committed(self._id)
        return proposal

    def withdraw(self, proposal: str) -> None:
        """See `ProposalStore.withdraw`."""
        with self._database.write() as execute:
            execute(
                "DELETE FROM proposals WHERE model_id = ? AND proposal = ?", (self._id, proposal)
            )

    def progress(self, proposal: str) -> ProposalProgress:
        """See `ProposalStore.progress`."""
        of = (self._id, proposal)
        with self._database.read() as execute:
            still = execute(
                "SELECT 1 FROM proposals"
                f" WHERE model_id = ? AND proposal = ? AND deadline > {self._now}",
                of,
            ).fetchone()
            said = execute(
                "SELECT replica, incarnation, digest, problem FROM attestations"
                " WHERE model_id = ? AND proposal = ?",
                of,
            ).fetchall()
            leased = execute(
                "SELECT replica, incarnation FROM replicas"
                f" WHERE model_id = ? AND lease_until > {self._now}",
                (self._id,),
            ).fetchall()
        attested = {(name, number): Attestation(*rest) for name, number, *rest in said}
        return ProposalProgress(still is not None, attested, frozenset((a, b) for a, b in leased))

    def newest(self) -> str | None:
        """See `ProposalStore.newest`."""
        with self._database.look() as execute:
            row = execute(
                f"SELECT proposal FROM proposals WHERE model_id = ? AND deadline > {self._now}"
                " ORDER BY proposed_at DESC, proposal LIMIT 1",
                (self._id,),
            ).fetchone()
        return None if row is None else str(row[0])

    def wait(
        self,
        after: str | None,
        timeout_s: float,
        wake: Wake = "auto",
        ended: Ending | None = None,
    ) -> str | None:
        """See `ProposalStore.wait`. Holds no connection meanwhile."""
        return self._database.wakeups.wait(
            self._id,
            self.newest,
            None,
            lambda name: name is not None and name != after,
            timeout_s,
            wake,
            ended,
        )

    def read(self, proposal: str) -> ProposalRow | None:
        """See `ProposalStore.read`."""
        with self._database.look() as execute:
            row = execute(
                f"SELECT asked, header, payload, deadline - {self._now} FROM proposals"
                " WHERE model_id = ? AND proposal = ?",
                (self._id, proposal),
            ).fetchone()
        if row is None:
            return None
        asked = frozenset((name, number) for name, number in json.loads(row[0]))
        return ProposalRow(proposal, asked, row[1], row[2], int(row[3]) / 1_000_000)

    def attest(self, proposal: str, replica: Incarnation, said: Attestation) -> bool:
        """See `ProposalStore.attest`."""
        with self._database.write() as execute:
            # Writing to its own row, it is the last of its name until this is durable.
            fenced = execute(
                f"UPDATE replicas SET seen_at = {self._now}"
                " WHERE model_id = ? AND replica = ? AND incarnation = ?",
                (self._id, *replica),
            )
            still = execute(
                "SELECT 1 FROM proposals"
                f" WHERE model_id = ? AND proposal = ? AND deadline > {self._now}",
                (self._id, proposal),
            ).fetchone()
            if fenced.rowcount != 1 or still is None:
                return False
            execute(
                "INSERT INTO attestations"
                " (model_id, proposal, replica, incarnation, attested_at, digest, problem)"
                f" VALUES (?, ?, ?, ?, {self._now}, ?, ?) ON CONFLICT DO NOTHING",
                (self._id, proposal, *replica, said.digest, said.problem),
            )
            return True
