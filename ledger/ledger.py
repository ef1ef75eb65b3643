"""The way in: open a ledger, register a model or take up its log."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

from weightledger.ledger.access.records import ApiKeys
from weightledger.ledger.config import HELD_VERSIONS_WAIT_S, MAX_HELD_VERSIONS
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.forks import OfItsProcess
from weightledger.ledger.history.reader import History
from weightledger.ledger.sql.backend import KEPT_CONNECTIONS
from weightledger.ledger.store import LedgerStore
from weightledger.ledger.store.sql_store import SqlStore

if TYPE_CHECKING:
    import torch

    from weightledger.ledger.engines import Engine
    from weightledger.ledger.fleet.follower import Follower
    from weightledger.ledger.fleet.readiness import Limits
    from weightledger.ledger.log import Log
    from weightledger.ledger.projection.starting import OnMismatch
    from weightledger.ledger.sharding.limits import ShardLimits
    from weightledger.ledger.sharding.log import ShardedLog
    from weightledger.ledger.sql.wakeups import Wake
    from weightledger.ledger.writing.policy import Policy

_HASHING_THREADS = 2


class Ledger(OfItsProcess):
    """Every model's log in one database, with its blobs there or in a store of their own.

    ledger = Ledger.open("sqlite:///weights.db")
    log = ledger.model("name", base=module)
    log.record(module, reason="optimizer step")
    """

    def __init__(self, store: LedgerStore) -> None:
        self.store = store
        self._pool = ThreadPoolExecutor(_HASHING_THREADS, thread_name_prefix="ledger-hash")

    @classmethod
    def open(
        cls,
        url: str,
        *,
        upgrade: bool = True,
        guarded: bool = True,
        blob_url: str | None = None,
        connections: int = KEPT_CONNECTIONS,
    ) -> "Ledger":
        """Open a database by SQLAlchemy URL, creating or upgrading its tables.

        `blob_url` says where a new ledger keeps large payloads and snapshots: a folder (a path or
        `file:///path`) or a bucket (`s3://bucket/prefix`, `gs://…`, `az://…`); None is the database
        itself. The ledger remembers it, so it need not be given again. Raises SchemaMismatch for a
        newer or foreign database (or an older one with `upgrade=False`) and one that is not
        append-only (unless `guarded=False`), InvalidRequest when the ledger keeps its blobs
        elsewhere, StorageError when a store cannot be reached. `connections` are kept open once
        made; a follower does with 2.
        """
        if not isinstance(url, str):
            raise InvalidRequest(
                f"the database is given as a URL, such as sqlite:///weights.db, got {url!r:.80}",
                param="database_url",
            )
        store = SqlStore.open(
            url, upgrade=upgrade, guarded=guarded, blob_url=blob_url, connections=connections
        )
        return cls(store)

    def close(self) -> None:
        """Give back connections and threads."""
        try:
            self._pool.shutdown()
        finally:  # who has enough of waiting for the threads lets go of the database all the same
            self.store.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def models(self) -> list[str]:
        """Names of the registered models, oldest first."""
        return self.store.models()

    @property
    def keys(self) -> ApiKeys:
        """The API keys of servers that serve this ledger: `create`, `rotate`, `revoke`, `all`."""
        return self.store.keys

    def history(self, model: str) -> History:
        """The log of a registered model, to read; NotFound otherwise."""
        return History(self.store.model(model), self._pool)

    def model(
        self,
        name: str,
        base: "torch.nn.Module | Mapping[str, torch.Tensor] | None" = None,
        *,
        engine: "Engine | None" = None,
        on_mismatch: "OnMismatch" = "refuse",
        alpha: float = 1.0,
        max_held_versions: int = MAX_HELD_VERSIONS,
        held_versions_wait_s: float = HELD_VERSIONS_WAIT_S,
        policy: "Policy | None" = None,
    ) -> "Log":
        """The log of a model, to read and write; `base` registers it at first use.

        `base` is copied: record what becomes of it with `Log.record`. An `engine` holds live
        weights that follow the log instead. With neither, a registered model is loaded from the
        log. Raises NotFound for an unknown model without base, WeightsMismatch when the weights
        given equal no state of the log. `max_held_versions` and `held_versions_wait_s` are
        explained at `DynamicUpdateConfig`. Every write to the log meets `policy`: its guard, the
        limits of adapters, what is switched off.
        """
        # The writing half, with torch and the engines, is imported by those who write.
        from weightledger.ledger.opening import open_log

        return open_log(
            self.store,
            self._pool,
            name,
            base,
            engine,
            on_mismatch,
            alpha=alpha,
            max_held_versions=max_held_versions,
            held_versions_wait_s=held_versions_wait_s,
            policy=policy,
        )

    def follow(
        self,
        name: str,
        *,
        engine: "Engine | None" = None,
        replica: str | None = None,
        wake: "Wake" = "auto",
        limits: "Limits | None" = None,
        rolling: int | None = None,
        prepares: bool = False,
        max_held_versions: int = MAX_HELD_VERSIONS,
        held_versions_wait_s: float = HELD_VERSIONS_WAIT_S,
    ) -> "Follower":
        """Live weights that follow a model's log, which others write: a replica.

        `engine` holds them; whatever it begins with, the ledger's weights win. Without one the
        model is loaded from the log. It is read-only, warmed up, and gives itself as ready once the
        digest of what it serves is proven; `replica` is its name, by default WEIGHTLEDGER_REPLICA
        or the host's. With `rolling` at most so many replicas change their weights at once
        (PostgreSQL). With `prepares` it builds what writers propose before they record it, and
        says whether it could. Raises NotFound for a model that nobody has registered,
        WeightsMismatch for an engine of another model. `close` it, or use it as a context.
        """
        from weightledger.ledger.following import follow

        return follow(
            self.store,
            self._pool,
            name,
            engine,
            replica,
            wake,
            limits,
            rolling,
            prepares,
            max_held_versions=max_held_versions,
            held_versions_wait_s=held_versions_wait_s,
        )

    def sharded(
        self,
        name: str,
        module: "torch.nn.Module | Mapping[str, torch.Tensor] | None" = None,
        *,
        timeout_s: float = 300.0,
        policy: "Policy | None" = None,
        limits: "ShardLimits | None" = None,
        alpha: float = 1.0,
    ) -> "ShardedLog":
        """The log of a model that is cut over the ranks of torch.distributed, which all call this.

        `module` registers it at first use, from what each rank holds. Writes meet `policy`, whose
        guard has to be None, and `limits`, what a change may be; `alpha` is as for `model`. Raises
        InvalidRequest without a process group, NotFound for an unknown model without a module,
        RankLost when a rank does not answer for `timeout_s` seconds.
        """
        # torch.distributed is imported by those who are in it.
        from weightledger.ledger.sharding.log import ShardedLog
        from weightledger.ledger.sharding.ranks import Ranks
        from weightledger.ledger.writing.policy import ANYTHING_GOES

        log = ShardedLog(
            *(self.store, self._pool, name, Ranks(timeout_s)),
            policy=policy or ANYTHING_GOES,
            limits=limits,
            alpha=alpha,
        )
        log.take_up(module)
        return log
