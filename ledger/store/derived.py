"""What is kept beside the log so that it can be searched: what it has to be, and what it is.

These say nothing that events do not say: `parameters` and `touches` (which updates counted for
which parameter), `listed_versions`, `tree_nodes`, and the kinds that `annotations` repeat. `derive`
folds events into what they must hold, `differences` compares, and `repair` makes them so.
"""

from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from weightledger.ledger.events import PINS, RETIRED, UPDATED, VERSIONS, Event, decode
from weightledger.ledger.events.bodies import VersionCreated, body_of, counted_parameters, pin_of
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.bulk import insert_rows
from weightledger.ledger.sql.layout import SEQ_BITS, SEQ_MASK
from weightledger.ledger.store import blocks, tree_rows
from weightledger.ledger.store.rows import key_of

_PAGE = 4096

PROTECTED = ("annotations", "parameters", "touches")
"""Tables whose triggers refuse what a repair has to do."""

_EVENTS = (
    "SELECT e.header, e.event_key, a.actor FROM events e LEFT JOIN annotations a"
    " ON a.event_key = e.event_key WHERE e.event_key BETWEEN ? AND ? ORDER BY e.event_key LIMIT ?"
)
_PARAMETERS = "SELECT name, parameter_id FROM parameters WHERE model_id = ?"
_TOUCHES = (
    "SELECT event_key, number, actor FROM touches WHERE parameter_id = ? ORDER BY event_key, number"
)
_LISTED = "SELECT number, event_key, node, pinned FROM listed_versions WHERE model_id = ?"
_NOTES = (
    "SELECT a.event_key, e.kind FROM annotations a JOIN events e ON e.event_key = a.event_key"
    " WHERE a.event_key BETWEEN ? AND ? AND a.kind <> e.kind"
)

Row = tuple[Any, ...]


@dataclass(slots=True)
class Derivation:
    """What the derived tables hold once `add` was told every event, in order.

    `touches` has the keys of the events that count for each parameter, `actors` those of the
    events that have one, `listed` the rows of `listed_versions` by number.
    """

    model_id: int
    parameters: set[str]
    touches: dict[str, "array[int]"] = field(default_factory=dict)
    actors: dict[int, str] = field(default_factory=dict)
    listed: dict[int, Row] = field(default_factory=dict)
    count: int = 0

    def add(self, event: Event, actor: str | None) -> None:
        key = key_of(self.model_id, event.seq)
        self.count += 1
        touched = counted_parameters(event.body) if event.kind == UPDATED else []
        for name in touched:
            self.touches.setdefault(name, array("q")).append(key)
            self.parameters.add(name)
        if touched and actor is not None:
            self.actors[key] = actor
        of = event.number
        if event.series == VERSIONS and of is not None:
            self.listed[of] = (of, key, body_of(event, VersionCreated).names.node, 0)
        elif event.series == RETIRED and of is not None:
            self.listed.pop(of, None)
        elif event.series == PINS:
            number, pinned = pin_of(event)
            if number in self.listed:
                self.listed[number] = (*self.listed[number][:3], int(pinned))

    def touches_of(self, name: str) -> list[Row]:
        """The rows of `touches` of one parameter, without its id."""
        keys = self.touches.get(name, ())
        return [(key, number, self.actors.get(key)) for number, key in enumerate(keys, 1)]


@dataclass(frozen=True, slots=True)
class Differences:
    """What is in a table and must not be, and what must be and is not; touches by name."""

    extra: Mapping[str, set[Row]]
    missing: Mapping[str, set[Row]]

    def counts(self) -> dict[str, int]:
        """How many rows of each table differ: a changed row is one."""
        of = {table: max(len(self.extra[table]), len(self.missing[table])) for table in self.extra}
        return {table: count for table, count in sorted(of.items()) if count}

    def described(self) -> list[str]:
        """In words, a line for each table that differs."""
        lines = []
        for table, count in self.counts().items():
            example = min(self.extra[table] or self.missing[table], key=repr)
            lines.append(
                f"{count} row(s) of {table} are not what the log says, such as {_shown(example)}"
            )
        return lines


def derive(execute: Execute, model_id: int, weights: Collection[str] | None) -> Derivation:
    """What the log says; `weights` are the full names of those the model was registered with.

    None where no snapshot is left that tells them: then the names that are there are believed.
    """
    if weights is None:
        weights = [name for name, _ in execute(_PARAMETERS, (model_id,)).fetchall()]
    derived = Derivation(model_id, set(weights))
    first, last = key_of(model_id, 0), key_of(model_id, SEQ_MASK)
    while True:
        page = execute(_EVENTS, (first, last, _PAGE)).fetchall()
        for header, _, actor in page:
            derived.add(decode(header), actor)
        if len(page) < _PAGE:
            return derived
        first = page[-1][1] + 1


def differences(execute: Execute, derived: Derivation, *, tree: bool = True) -> Differences:
    """How the tables differ from what was derived; the hash tree's is left out on demand."""
    model_id = derived.model_id
    bounds = key_of(model_id, 0), key_of(model_id, SEQ_MASK)
    named = execute(_PARAMETERS, (model_id,)).fetchall()
    touches: tuple[set[Row], set[Row]] = set(), set()
    for name, parameter_id in named:
        there = [tuple(row) for row in execute(_TOUCHES, (parameter_id,)).fetchall()]
        wanted = derived.touches_of(name)
        if there != wanted:
            touches[0].update((name, *row) for row in set(there) - set(wanted))
            touches[1].update((name, *row) for row in set(wanted) - set(there))
    names = {(name,) for name, _ in named}
    listed = {tuple(row) for row in execute(_LISTED, (model_id,)).fetchall()}
    nodes = set(tree_rows.stored(execute, model_id)) if tree else set()
    grown = set(tree_rows.grown(execute, model_id, derived.count)) if tree else set()
    parameters, versions = {(name,) for name in derived.parameters}, set(derived.listed.values())
    return Differences(
        extra={
            "annotations": {tuple(row) for row in execute(_NOTES, bounds).fetchall()},
            "touches": touches[0],
            "parameters": names - parameters,
            "listed_versions": listed - versions,
            "tree_nodes": nodes - grown,
            "search_blocks": _wrong_blocks(execute, model_id, derived.count),
        },
        missing={
            "annotations": set(),
            "touches": touches[1],
            "parameters": parameters - names,
            "listed_versions": versions - listed,
            "tree_nodes": grown - nodes,
            "search_blocks": set(),
        },
    )


def _wrong_blocks(execute: Execute, model_id: int, count: int) -> set[Row]:
    """The blocks of the search that are not what their events say. A missing one is none."""
    wrong: set[Row] = set()
    for number, there in blocks.checksums(execute, model_id).items():
        block = blocks.read_block(execute, model_id, number, count - 1)
        if block.size < blocks.BLOCK or blocks.checksum(block, model_id) != there:
            wrong.add((number,))
    return wrong


def repair(execute: Execute, derived: Derivation, found: Differences) -> None:
    """Make the tables what was derived; their triggers are out of the way."""
    model_id, counts = derived.model_id, found.counts()
    for key, kind in found.extra["annotations"]:
        execute("UPDATE annotations SET kind = ? WHERE event_key = ?", (kind, key))
    if "parameters" in counts:
        _rename(execute, model_id, found)
    if "parameters" in counts or "touches" in counts:
        _retouch(execute, derived)
    if "listed_versions" in counts:
        execute("DELETE FROM listed_versions WHERE model_id = ?", (model_id,))
        insert_rows(
            execute,
            "listed_versions (model_id, number, event_key, node, pinned)",
            [(model_id, *row) for row in derived.listed.values()],
        )
    blocks.forget(execute, model_id, [number for (number,) in found.extra["search_blocks"]])
    if "tree_nodes" in counts:
        tree_rows.rewrite(execute, model_id, derived.count)


def _rename(execute: Execute, model_id: int, found: Differences) -> None:
    """Give parameters their names again, and their ids where it is plain which is which.

    Processes that are running know parameters by their ids.
    """
    extra = [name for (name,) in found.extra["parameters"]]
    missing = sorted(name for (name,) in found.missing["parameters"])
    if len(extra) == len(missing) == 1:
        execute(
            "UPDATE parameters SET name = ? WHERE model_id = ? AND name = ?",
            (missing[0], model_id, extra[0]),
        )
        return
    for name in extra:
        execute(
            "DELETE FROM touches WHERE parameter_id IN (SELECT parameter_id FROM parameters"
            " WHERE model_id = ? AND name = ?)",
            (model_id, name),
        )
        execute("DELETE FROM parameters WHERE model_id = ? AND name = ?", (model_id, name))
    insert_rows(execute, "parameters (model_id, name)", [(model_id, name) for name in missing])


def _retouch(execute: Execute, derived: Derivation) -> None:
    for name, parameter_id in execute(_PARAMETERS, (derived.model_id,)).fetchall():
        wanted = derived.touches_of(name)
        if [tuple(row) for row in execute(_TOUCHES, (parameter_id,)).fetchall()] == wanted:
            continue
        execute("DELETE FROM touches WHERE parameter_id = ?", (parameter_id,))
        insert_rows(
            execute,
            "touches (parameter_id, event_key, number, actor)",
            [(parameter_id, *row) for row in wanted],
        )


def strays(execute: Execute) -> list[str]:
    """Rows that belong to no model or no event, in words: no log accounts for them."""
    found = []
    for what, query in _STRAYS.items():
        (count,) = execute(query).fetchone()
        if count:
            found.append(f"{count} row(s) of {what}")
    return found


_STRAYS = {
    **{
        f"{table} belong to no model": f"SELECT count(*) FROM {table}"
        " WHERE model_id NOT IN (SELECT model_id FROM models)"
        for table in (
            *("events", "parameters", "listed_versions", "snapshots", "tree_nodes"),
            *("search_blocks", "metric_rollups", "metric_pushes"),
        )
    },
    "events have another model's key": "SELECT count(*) FROM events"
    f" WHERE event_key >> {SEQ_BITS} <> model_id",
    "touches belong to no parameter": "SELECT count(*) FROM touches"
    " WHERE parameter_id NOT IN (SELECT parameter_id FROM parameters)",
    "annotations belong to no event": "SELECT count(*) FROM annotations a WHERE NOT EXISTS"
    " (SELECT 1 FROM events e WHERE e.event_key = a.event_key)",
}


def _shown(row: tuple[Any, ...]) -> str:
    return "(" + ", ".join(v.hex() if isinstance(v, bytes) else repr(v) for v in row) + ")"
