"""Everything that `ledger` raises on purpose.

    LedgerError
    ├── InvalidRequest          400  the caller sent something that cannot be applied
    │   ├── UnsupportedModel         a tensor, dtype or module the ledger cannot hold
    │   ├── ContextTooLong           more tokens than the model takes
    │   ├── PayloadTooLarge     413
    │   └── ReplicasDiverge          ranks that should have the same values have others
    ├── NotFound                404  no such parameter, version, update, model or position
    │   ├── ModelNotFound            a request names a model that is not served here
    │   └── Ambiguous                a digest's first digits are those of several states
    ├── Pruned                  410  gc dropped what this state needed
    ├── OperationDisabled       403  switched off by configuration
    ├── NotAllowed              403  it takes another person than the one who asks
    │   └── InsufficientScope        the API key is not for this
    ├── AwaitingApproval        202  the write waits for a second person
    ├── Conflict                409  contradicts what others decided
    │   ├── SharedBlobs              another ledger keeps its blobs at the same place
    │   └── RolloutRuns              one rollout runs at a time
    ├── PreconditionFailed      412  the expected seq is not the last state change
    ├── IdempotencyMismatch     422  the key was used for another request
    ├── WeightsMismatch         503  live weights are not the ledger's
    │   └── WeightsChangedOutside    someone wrote to the live tensors behind the ledger
    ├── Unavailable             503  not now, though nothing is wrong; retry
    │   ├── ExecutorUnavailable      where parallel work was to be done does not take it
    │   └── RankLost                 a rank of a sharded model died or does not answer
    ├── WorkersDied             500  parallel work was begun several times and died each time
    ├── NotShownYet             409  the state that a request wants to see is not shown here yet
    ├── ReplicaSuperseded       503  a newer process reports as this replica: fenced
    ├── EngineUnavailable       503  a remote engine does not show the ledger's state: fenced
    │   └── PublishFailed            it refused the new state and still shows the one before
    ├── PluginError             500  an installed package's entry point cannot be used; names it
    ├── WhatIfRefused           422  a state without some events cannot be told
    │   ├── NotDefined               what they changed was touched again; names by which events
    │   └── CannotDerive             an event cannot be worked out again; names the first
    ├── JudgeFailed             422  who was to judge a state failed, or contradicts itself
    ├── ProofError              500  a proof, a checkpoint or a signature does not hold
    ├── CorruptLedger           500  stored bytes do not verify; names the seq
    │   └── DamagedSnapshot          those of a snapshot; another may lead to the same state
    └── StorageError            503  the database or blob store failed
        ├── OutcomeUnknown           failed while committing: recorded or not, nobody knows
        ├── StorageFull              no space left
        ├── StorageBusy              locked beyond the busy timeout, or others kept winning
        ├── StorageUnavailable       cannot be reached right now
        ├── SchemaMismatch           the database belongs to another version or application
        └── LedgerInUse              another server holds this data folder

    SeqTaken and KeyTaken, from a store to the writer, who never lets them out: a race was lost.

The HTTP status is the one the REST face answers with; the classes know nothing of HTTP.
Messages name what was expected, so that the caller can act on them, and no secret.
"""

from weightledger.ledger.secrets import mask


class LedgerError(Exception):
    """Base of every error the ledger raises on purpose."""

    def __str__(self) -> str:
        return mask(super().__str__())


class InvalidRequest(LedgerError, ValueError):
    """The request cannot be applied to this model.

    `param` names the offending field of the request, where there is one.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedModel(InvalidRequest):
    """A tensor, dtype or module that the ledger cannot record faithfully."""


class ContextTooLong(InvalidRequest):
    """The text has more tokens than the model takes; the message names the limit."""


class PayloadTooLarge(InvalidRequest):
    """The request is larger than this entrance takes."""


class ReplicasDiverge(InvalidRequest):
    """Ranks that hold the same part of a tensor hold different values; `rank` is the first that
    differs, `param` the tensor."""

    def __init__(self, message: str, *, param: str, rank: int) -> None:
        super().__init__(message, param=param)
        self.rank = rank


class NotFound(LedgerError, LookupError):
    """No parameter, version, update, model or position has this name."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ModelNotFound(NotFound):
    """The request names a model that is not served here."""


class Ambiguous(NotFound):
    """The first digits of a digest, which several states have: more digits would name one."""


class Pruned(LedgerError):
    """The state is known by its digest, but what it was made of was dropped by `gc`.

    `seq` is the state-changing event that led to it, None where a server said so in words.
    """

    def __init__(self, message: str, *, seq: int | None = None) -> None:
        super().__init__(message)
        self.seq = seq


class OperationDisabled(LedgerError):
    """The configuration switches this operation off."""


class NotAllowed(LedgerError):
    """Whoever asks may not do this, such as approve what they asked for themselves."""


class InsufficientScope(NotAllowed):
    """A key that is not for this; `scope` is what it would have to be for."""

    def __init__(self, message: str, *, scope: str) -> None:
        super().__init__(message)
        self.scope = scope


class AwaitingApproval(LedgerError):
    """The write was recorded as asked for, and is carried out once somebody else approves it."""

    def __init__(self, message: str, *, approval_id: str) -> None:
        super().__init__(message)
        self.approval_id = approval_id


class Conflict(LedgerError):
    """It contradicts what somebody else has decided or changed meanwhile."""


class SharedBlobs(Conflict):
    """Another ledger keeps its blobs at the same place."""


class RolloutRuns(Conflict):
    """A rollout cannot be started while another one runs."""


class PreconditionFailed(LedgerError):
    """The model is no longer at the state the caller expected.

    `head_seq` is the seq of the last state change.
    """

    def __init__(self, message: str, *, head_seq: int) -> None:
        super().__init__(message)
        self.head_seq = head_seq


class IdempotencyMismatch(LedgerError):
    """This idempotency key belongs to a different request."""


class WeightsMismatch(LedgerError):
    """The weights at hand are not a state that the ledger knows."""


class WeightsChangedOutside(WeightsMismatch):
    """Live tensors were written without the ledger."""


class Unavailable(LedgerError):
    """As much as the configuration allows is going on already; retry. Nothing was recorded."""


class ExecutorUnavailable(Unavailable):
    """What was to do parallel work is not installed, does not answer, or has no room."""


class RankLost(Unavailable):
    """A rank of a sharded model died or does not answer; what it took part in was not recorded,
    but for an event that was appended already."""


class WorkersDied(LedgerError):
    """The processes that did a parallel task died, however often it was begun."""


class NotShownYet(LedgerError):
    """The state that a request wants to see, or a later one, is not shown here yet."""


class ReplicaSuperseded(LedgerError):
    """Another process has begun to report as this replica; what this one says is refused."""


class EngineUnavailable(LedgerError):
    """A remote engine does not answer, or is not known to show the ledger's state."""


class PublishFailed(EngineUnavailable):
    """A remote engine could not be brought to a state, and shows the one before it."""


class PluginError(LedgerError):
    """What an installed package brings cannot be used; the message names the package."""


class WhatIfRefused(LedgerError):
    """What a state would be without some events cannot be told."""


class NotDefined(WhatIfRefused):
    """What the events changed was touched again, so their difference cannot be taken out."""


class CannotDerive(WhatIfRefused):
    """An event cannot be worked out again from what it kept; `seq` is the first of them."""

    def __init__(self, message: str, *, seq: int) -> None:
        super().__init__(message)
        self.seq = seq


class JudgeFailed(LedgerError):
    """A command or evaluator that was to judge a state cannot be run, failed, or cannot be right.

    What it judged before stands.
    """


class ProofError(LedgerError):
    """A proof, a checkpoint or a signature does not hold; the message says what it leads to."""


class CorruptLedger(LedgerError):
    """Stored bytes do not match their recorded digests.

    `seq` is the first event that is affected, when that is known.
    """

    def __init__(self, message: str, *, seq: int | None = None) -> None:
        super().__init__(message)
        self.seq = seq


class DamagedSnapshot(CorruptLedger):
    """A snapshot is not what the log says; `seq` is the state change that it is a snapshot of."""

    def __init__(self, message: str, *, seq: int) -> None:
        super().__init__(message, seq=seq)
        self.node = seq


class StorageError(LedgerError):
    """The database or blob store failed; nothing was recorded, but for OutcomeUnknown."""


class StorageFull(StorageError):
    """No space is left; free some and retry."""


class OutcomeUnknown(StorageError):
    """It failed while committing: the change may turn out to be recorded, after a crash even later.

    Sent again with its idempotency key it is recorded once, whichever it was.
    """


class FullOutcomeUnknown(StorageFull, OutcomeUnknown):
    """No space is left to commit, nor to make sure that nothing of it stays."""


class StorageBusy(StorageError):
    """The database stayed locked beyond the busy timeout, or other writers kept winning; retry."""


class StorageUnavailable(StorageError):
    """The database or blob store cannot be reached or does not answer; retry."""


class SchemaMismatch(StorageError):
    """The database was made by a newer release or by another application."""


class LedgerInUse(StorageError):
    """Another server holds this data folder."""


class SeqTaken(LedgerError):
    """Another writer appended this seq first: catch up, recompute, retry."""


class KeyTaken(LedgerError):
    """Another writer used this idempotency key first: answer with its event."""
