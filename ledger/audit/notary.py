"""The notary of a log: a signed checkpoint soon after every event, and witnesses who cosign it.

It works on a thread of its own and reads what is committed, so no write waits for it, nor for a
witness that is slow or gone.
"""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from weightledger.ledger.audit import checkpoints, witnesses
from weightledger.ledger.audit.notes import Note, Signature
from weightledger.ledger.audit.signing import Signer, require_continuation
from weightledger.ledger.audit.witnesses import LogContradicted, Witness
from weightledger.ledger.errors import InvalidRequest, LedgerError, ProofError
from weightledger.ledger.store import EventStore

logger = logging.getLogger(__name__)

_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0
_GRACE_S = 2.0  # a witness may take longer; what it says is asked for again


@dataclass(frozen=True, slots=True)
class EvidenceStanding:
    """How far a log is vouched for.

    `signed` and `witnessed` are how many events the last signed checkpoint has, and the last that
    the quorum of witnesses have cosigned. `contradictions` are proofs that the log is not the one
    that was signed; `problems` is what keeps it from being vouched for just now.
    """

    signed: int = 0
    witnessed: int = 0
    contradictions: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class Notary:
    """Signs checkpoints of one log and has them cosigned: when asked, and by itself once started.

    `quorum` is how many witnesses have to cosign, by default all. `every_s` is the least time
    between two checkpoints while events come one after the other.
    """

    def __init__(
        self,
        store: EventStore,
        signer: Signer,
        known: Sequence[Witness] = (),
        quorum: int | None = None,
        every_s: float = 0.5,
    ) -> None:
        witnesses.require_distinct(known)
        quorum = len(known) if quorum is None else quorum
        if not 0 <= quorum <= len(known):
            raise InvalidRequest(
                f"a quorum of {quorum} of {len(known)} witnesses cannot be reached",
                param="witness_quorum",
            )
        self.store = store
        self.signer = signer
        self.quorum = quorum
        self.standing = EvidenceStanding()
        self.started = False
        self._witnesses = tuple(known)
        self._sizes: dict[Witness, int] = {}
        self._every_s = every_s
        self._due, self._ending = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to sign by itself."""
        self.started = True
        self._due.set()
        self._thread = threading.Thread(target=self._run, name="ledger-notary", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish what is being signed; what came after that is left to the next start."""
        self._ending.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join(_GRACE_S)

    def wake(self) -> None:
        """There are new events. Never waits."""
        self._due.set()

    def vouch(self) -> EvidenceStanding:
        """Sign a checkpoint of the log as it is now, and have it cosigned; never raises."""
        before = self.standing
        try:
            note = self.signer.checkpoint(self.store)
        except ProofError as error:
            return self._now(replace(before, contradictions=(str(error),), problems=()))
        except LedgerError as error:
            return self._now(replace(before, problems=(f"no checkpoint is signed: {error}",)))
        standing = EvidenceStanding(checkpoints.read(note).size, before.witnessed)
        if self._witnesses:
            standing = self._cosigned(note, standing)
        return self._now(standing)

    def _cosigned(self, note: Note, standing: EvidenceStanding) -> EvidenceStanding:
        signatures: list[Signature] = []
        contradictions: list[str] = []
        problems: list[str] = []
        with ThreadPoolExecutor(len(self._witnesses), thread_name_prefix="ledger-witness") as pool:
            asked = [pool.submit(self._ask, witness, note) for witness in self._witnesses]
        for one in asked:
            try:
                signatures.append(one.result())
            except LogContradicted as error:
                contradictions.append(str(error))
            except LedgerError as error:
                problems.append(str(error))
        enough = len(signatures) >= self.quorum
        if signatures:
            try:
                self.signer.cosigned(self.store, note, signatures)
            except LedgerError as error:
                enough = False
                problems.append(f"the cosignatures are not kept: {error}")
        return replace(
            standing,
            witnessed=standing.signed if enough else standing.witnessed,
            contradictions=tuple(contradictions),
            problems=tuple(problems),
        )

    def _ask(self, witness: Witness, note: Note) -> Signature:
        known = self._sizes.get(witness, 0)
        signature = witnesses.cosign(witness, self.store, self.signer, note, known)
        self._sizes[witness] = checkpoints.read(note).size
        return signature

    def _now(self, standing: EvidenceStanding) -> EvidenceStanding:
        if self._ending.is_set():
            return standing
        for one in standing.contradictions:
            if one not in self.standing.contradictions:
                logger.error("the log is not the one that was signed: %s", one)
        for one in standing.problems:
            if one not in self.standing.problems:
                logger.warning("%s", one)
        self.standing = standing
        return standing

    def _run(self) -> None:
        retry_s = _RETRY_S
        while not self._ending.is_set():
            trouble = self.standing.problems or self.standing.contradictions
            self._due.wait(retry_s if trouble else None)
            if self._ending.is_set():
                return
            self._due.clear()
            began = time.monotonic()
            try:
                standing = self.vouch()
            except Exception:
                logger.exception("no checkpoint was signed")
                standing = replace(self.standing, problems=("no checkpoint could be signed",))
                self.standing = standing
            troubled = bool(standing.problems or standing.contradictions)
            retry_s = min(2 * retry_s, _LONGEST_RETRY_S) if troubled else _RETRY_S
            self._ending.wait(max(0.0, began + self._every_s - time.monotonic()))


def witnessed_problems(
    store: EventStore, signer: Signer, known: Sequence[Witness], quorum: int | None = None
) -> list[str]:
    """Why a log is not what witnesses have cosigned, in words; empty when it is.

    Asks each for the last checkpoint it cosigned, and holds the log against it: what our own folder
    says may have been forged with the log. Also empty when some do not answer but `quorum` do; what
    contradicts the log counts in any case.
    """
    witnesses.require_distinct(known)
    quorum = len(known) if quorum is None else quorum
    if not known:
        return ["no witness is configured: name some with --witness URL#KEY"]
    problems: list[str] = []
    contradictions: list[str] = []
    for witness in known:
        try:
            witnesses.held(witness, store, signer)
        except LogContradicted as error:
            contradictions.append(str(error))
        except LedgerError as error:
            problems.append(str(error))
    try:
        kept = signer.witnessed(store)
        if kept is not None:
            require_continuation(store, checkpoints.read(kept))
    except ProofError as error:
        contradictions.append(str(error))
    if contradictions:
        return contradictions
    return problems if len(known) - len(problems) < max(quorum, 1) else []
