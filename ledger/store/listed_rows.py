"""The rows that say which versions are listed and which anchors there are."""

from collections.abc import Sequence

from weightledger.ledger.sql.bulk import marks, pieces
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.store import Listed
from weightledger.ledger.store.attached import Snapshot
from weightledger.ledger.store.model_rows import ModelRows

_LISTED = (
    f"SELECT number, event_key & {SEQ_MASK}, node, pinned FROM listed_versions WHERE model_id = ?"
)
_LAST_LISTED = f"{_LISTED} AND number < ? ORDER BY number DESC LIMIT ?"
_LISTED_BEFORE = f"{_LISTED} AND node <= ? ORDER BY node DESC, number DESC LIMIT 1"
_SNAPSHOTS = "SELECT node, manifest, size FROM snapshots WHERE model_id = ?"
_OLDER_SNAPSHOTS = f"{_SNAPSHOTS} AND node <= ? ORDER BY node DESC LIMIT ?"
_NEWER_SNAPSHOTS = f"{_SNAPSHOTS} AND node > ? ORDER BY node LIMIT ?"


def versions(of: ModelRows) -> list[Listed]:
    """The versions that are not retired, by number."""
    return _listed(of, f"{_LISTED} ORDER BY number")


def last_versions(of: ModelRows, limit: int, below: int | None) -> list[Listed]:
    """Of the versions that are not retired the last `limit` (below a number), newest first."""
    return _listed(of, _LAST_LISTED, SEQ_MASK if below is None else below, limit)


def versions_at(of: ModelRows, nodes: Sequence[int]) -> list[Listed]:
    """The versions that name one of these nodes and are not retired, by number."""
    listed: list[Listed] = []
    for piece in pieces(nodes):
        listed += _listed(of, f"{_LISTED} AND node IN ({marks(len(piece))})", *piece)
    return sorted(listed)


def version(of: ModelRows, number: int) -> Listed | None:
    """The version with this number, if it is not retired."""
    return next(iter(_listed(of, f"{_LISTED} AND number = ?", number)), None)


def version_before(of: ModelRows, node: int) -> Listed | None:
    """Of the versions that name this node or the nearest smaller one the newest."""
    return next(iter(_listed(of, _LISTED_BEFORE, node)), None)


def snapshots(of: ModelRows) -> list[Snapshot]:
    """Every anchor, by node."""
    with of.database.look() as execute:
        anchors = execute(f"{_SNAPSHOTS} ORDER BY node", (of.model_id,))
        return [Snapshot(*row) for row in anchors]


def snapshots_near(of: ModelRows, node: int, most: int) -> list[Snapshot]:
    """Of the anchors at or before a node the last `most`, and the first `most` after it."""
    with of.database.read() as execute:
        older = execute(_OLDER_SNAPSHOTS, (of.model_id, node, most)).fetchall()
        newer = execute(_NEWER_SNAPSHOTS, (of.model_id, node, most)).fetchall()
    return [Snapshot(*row) for row in (*reversed(older), *newer)]


def _listed(of: ModelRows, sql: str, *params: int) -> list[Listed]:
    with of.database.look() as execute:
        listed = execute(sql, (of.model_id, *params)).fetchall()
    return [Listed(number, seq, node, bool(pinned)) for number, seq, node, pinned in listed]
