"""A ledger's database, for commands that read it without a server."""

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightledger import Ledger
from weightledger.api.items import (
    activity_item,
    approval_item,
    event_item,
    hold_item,
    kinds_of,
    replica_item,
    rollout_item,
    served_item,
    trial_item,
    version_item,
)
from weightledger.api.server.settings import Settings
from weightledger.ledger.debug.follow import follow
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.fleet.served import fleet, served
from weightledger.ledger.history import approvals, holds, rollouts
from weightledger.ledger.history.positions import iso_time, parse_time
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.versions import updates_since_active
from weightledger.ledger.parallel import Executor
from weightledger.ledger.parallel.local import ALONE
from weightledger.ledger.sql.presence import servers
from weightledger.ledger.store import EventFilter
from weightledger.ledger.store.sql_store import SqlStore

if TYPE_CHECKING:
    from weightledger.ledger.debug.walking import Walker
    from weightledger.ledger.monitoring.reading import By

Item = dict[str, Any]

_APPROVALS = 100

_TRIALS = 20
_ROLLOUTS = 20


@contextlib.contextmanager
def opened(settings: Settings, model: str | None, *, guarded: bool = True) -> Iterator[History]:
    """One model's log as it is: nothing is created or upgraded.

    Unguarded, also from a database that is not append-only.
    """
    require_ledger(settings)
    store = SqlStore.open(settings.update_config().url, upgrade=False, guarded=guarded)
    with contextlib.closing(store), ThreadPoolExecutor(2) as pool:
        name = choose_model(store.models(), model)
        yield History(store.model(name), pool)


@contextlib.contextmanager
def ledger_opened(settings: Settings) -> Iterator[Ledger]:
    """Every model's log, to read and to append what changes no state."""
    require_ledger(settings)
    with Ledger.open(settings.update_config().url, upgrade=False) as ledger:
        yield ledger


def require_ledger(settings: Settings) -> None:
    """NotFound unless there is a database, or one that is somewhere else."""
    config = settings.update_config()
    if config.database_url is None and not config.file.exists():
        where = shlex.join(["--data-dir", str(settings.data_dir)])
        raise NotFound(
            f"no ledger in {settings.data_dir}; name its place with --data-dir or --database,"
            f" or start one there with: weightledger serve {where}"
        )


def choose_model(models: list[str], name: str | None) -> str:
    """The model to work on: the one named, or the only one there is."""
    if name is not None and name in models:
        return name
    if name is not None or len(models) != 1:
        known = ", ".join(models) or "none"
        said = f"no model {name!r}" if name is not None else "say which model with --model"
        raise InvalidRequest(f"{said}; registered: {known}", param="model")
    return models[0]


class Local:
    """One model's log; the same questions as a `remote.Remote` answers."""

    def __init__(self, history: History, database_url: str) -> None:
        self.history = history
        self._url = database_url
        self._walker: Walker | None = None

    def model(self) -> str:
        return self.history.model

    def status(self) -> Item:
        """Where the model stands."""
        history = self.history
        head, listed = history.head(), history.versions()
        active = next((one for one in listed if one.is_active), None)
        serving = servers(self._url)
        return {
            "model": history.model,
            "head_seq": head.seq,
            "state_seq": head.state_seq,
            "digest": head.state_after.hex(),
            "recorded_at": iso_time(head.recorded_at),
            "total_updates": head.counts.applied,
            "total_versions": len(listed),
            "current_version": active.version_id if active else None,
            "updates_since_version": updates_since_active(history.store),
            "server": ", ".join(one.url for one in serving) or None,
        }

    def events(self, query: Mapping[str, Any], number: int) -> list[Item]:
        """Events that pass the filters, named as those of `GET /v1/models/updates`."""
        kinds = kinds_of(query.get("kind", ()), query.get("outcome"))
        if kinds is None:
            return []
        where = EventFilter(
            kinds=kinds,
            actors=query.get("actor", ()),
            parameter=query.get("parameter"),
            since=_micros(query.get("since")),
            until=_micros(query.get("until")),
            min_seq=int(query["min_seq"]) if "min_seq" in query else None,
            max_seq=int(query["max_seq"]) if "max_seq" in query else None,
            text=query.get("text"),
            min_norm=query.get("min_norm"),
            metadata={
                name.removeprefix("metadata."): value
                for name, value in query.items()
                if name.startswith("metadata.")
            },
        )
        events = self.history.events(where, limit=number)
        notes = self.history.store.annotations([event.seq for event in events])
        return [event_item(event, notes.get(event.seq)) for event in events]

    def activity(self, query: Mapping[str, Any]) -> list[Item]:
        """Counts of events, with the filters of `GET /v1/models/activity`."""
        where = EventFilter(
            kinds=query.get("kind", ()),
            actors=query.get("actor", ()),
            since=_micros(query.get("since")),
            until=_micros(query.get("until")),
        )
        return [activity_item(one) for one in self.history.activity(where)]

    def approvals(self) -> list[Item]:
        """Writes that wait for a second person, or did, newest first."""
        listed = approvals.every(self.history.store, limit=_APPROVALS)
        return [approval_item(one) for one in listed]

    def replicas(self) -> list[Item]:
        """Who follows the log."""
        return [replica_item(one) for one in fleet(self.history)]

    def served(self, replica: str, at: str) -> Item:
        """What a replica served at a time."""
        moment = parse_time(at)
        assert moment is not None, "the option was checked"
        return served_item(served(self.history, replica, moment))

    def rollouts(self) -> list[Item]:
        """Rollouts, newest first."""
        return [rollout_item(one) for one in rollouts.latest(self.history.store, _ROLLOUTS)]

    def holds(self) -> list[Item]:
        """Legal holds, newest first."""
        return [hold_item(one) for one in holds.every(self.history.store)]

    def event(self, name: str) -> Item:
        """One event."""
        event = self.history.event(name)
        return event_item(event, self.history.store.annotation(event.seq))

    def versions(self) -> list[Item]:
        """Listed versions, newest first."""
        return [version_item(one) for one in self.history.versions()]

    def version(self, name: str) -> Item:
        """One listed version; NotFound otherwise."""
        return version_item(self.history.version(name))

    def follow(self, after: int) -> Iterator[Item]:
        """Events after a seq as they are committed, for ever; asks the database twice a second."""
        store = self.history.store
        for event in follow(store, after):
            yield event_item(event, store.annotation(event.seq))

    def diff(self, query: Mapping[str, Any], executor: Executor = ALONE) -> Item:
        """What `GET /v1/models/diff` says."""
        # Both import torch.
        from weightledger.ledger.debug.diff import diff
        from weightledger.ledger.debug.each import each

        before, after = query["from"], query["to"]
        if query.get("each"):
            columns = query["columns"]
            return each(self.history, before, after, columns=columns).to_json()
        ranks = query["ranks"]
        return diff(self.history, before, after, ranks=ranks, executor=executor).to_json()

    def metrics(self, query: Mapping[str, Any], by: "By", number: int) -> list[Item]:
        """Measurements, by the names of `GET /v1/models/metrics`; what is written of them."""
        # They import numpy and a library of sketches, for which no other command is to wait.
        from weightledger.api.measurements import page
        from weightledger.ledger.monitoring.rollups import Where
        from weightledger.ledger.monitoring.stored import StoredMetrics

        where = Where(
            metrics=query.get("metric", ()),
            sources=query.get("source", ()),
            replicas=query.get("replica", ()),
            min_seq=query.get("min_seq"),
            max_seq=query.get("max_seq"),
            since_us=_micros(query.get("since")),
            until_us=_micros(query.get("until")),
        )
        stored = StoredMetrics(self.history.store.metrics)
        data: list[Item] = page(stored.rollups(where), by, limit=number)["data"]
        return data

    def trials(self) -> list[Item]:
        """The trial that runs and the last that ended, newest first."""
        from weightledger.ledger.monitoring.trial_log import trials

        return [trial_item(one) for one in trials(self.history, _TRIALS)]

    def blame(self, query: Mapping[str, Any]) -> Item:
        """What `GET /v1/models/blame` says."""
        from weightledger.ledger.debug.blame import blame  # imports torch

        return blame(
            self.history,
            query["parameter"],
            query.get("index"),
            limit=query["limit"],
            max_seq=query.get("max_seq"),
        ).to_json()

    def what_if(self, asked: Mapping[str, Any], executor: Executor = ALONE) -> Item:
        """What `POST /v1/models/replay` says."""
        import weightledger.rules  # noqa: F401  which says how learning is worked out again
        from weightledger.ledger.debug import replaying  # imports torch

        return replaying.described_by(self.history, replaying.StateRequest(**asked), executor)

    def what_if_each(self, asked: Mapping[str, Any], executor: Executor = ALONE) -> list[Item]:
        """What `what_if` says of each of `without` left out by itself, or why that is not told."""
        import weightledger.rules  # noqa: F401  which says how learning is worked out again
        from weightledger.ledger.debug import replaying  # imports torch

        return replaying.described_each(self.history, replaying.StateRequest(**asked), executor)

    def save(self, asked: Mapping[str, Any], out: Path, executor: Executor = ALONE) -> Item:
        """Write the state that `POST /v1/models/replay` would give to a file, verified."""
        import weightledger.rules  # noqa: F401  which says how learning is worked out again
        from weightledger.ledger.debug import replaying  # imports torch
        from weightledger.ledger.debug.walking import Walker

        if self._walker is None:  # several states are visited on one way
            self._walker = Walker(self.history)
        return replaying.save(
            self.history, replaying.StateRequest(**asked), out, self._walker, executor
        )

    def save_each(self, files: Mapping[str, Path], executor: Executor) -> dict[str, Item]:
        """Write the states at several positions to a file each, verified; facts by position."""
        from weightledger.ledger.debug.parallel import save_each  # imports torch

        nodes = {position: self.history.resolve(position).node for position in files}
        saved = save_each(self.history, {nodes[one]: file for one, file in files.items()}, executor)
        return {position: saved[node] for position, node in nodes.items()}


def _micros(text: str | None) -> int | None:
    return None if text is None else parse_time(text)
