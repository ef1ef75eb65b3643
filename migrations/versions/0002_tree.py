"""The hash tree over each log: its table, filled for the events there are.

Frozen, like every revision: the table in SQL, the shape of the tree (RFC 6962) here.
"""

from hashlib import sha256
from pathlib import Path

from alembic import op
from alembic.util import CommandError

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_PAGE = 65_536  # events


def upgrade() -> None:
    """Make the table, and fold what is there, a page at a time."""
    connection = op.get_bind()
    kind = connection.dialect.name
    for statement in Path(__file__).with_suffix(f".{kind}.sql").read_text("utf-8").split("\n;\n"):
        if statement:
            connection.exec_driver_sql(statement)
    mark = "?" if kind == "sqlite" else "%s"
    page = (
        f"SELECT event_hash FROM events WHERE event_key BETWEEN {mark} AND {mark}"
        " ORDER BY event_key"
    )
    add = f"INSERT INTO tree_nodes VALUES ({', '.join([mark] * 4)})"
    for (model_id,) in connection.exec_driver_sql("SELECT model_id FROM models").fetchall():
        first, level, whole = model_id << 40, 8, []
        while True:
            rows = connection.exec_driver_sql(page, (first, first + _PAGE - 1)).fetchall()
            whole += _folded([bytes(one) for (one,) in rows])
            if len(rows) < _PAGE:
                break
            first += _PAGE
        while whole:
            for number, node in enumerate(whole):
                connection.exec_driver_sql(add, (model_id, level, number, node))
            level, whole = level + 8, _folded(whole)


def _folded(hashes: list[bytes]) -> list[bytes]:
    """The roots of each 256 of these hashes; what is left over has none yet."""
    level = hashes[: len(hashes) // 256 * 256]
    for _ in range(8):
        level = [
            sha256(b"\1" + level[at] + level[at + 1]).digest() for at in range(0, len(level), 2)
        ]
    return level


def downgrade() -> None:
    raise CommandError("a ledger is append-only and is not downgraded: restore a backup instead")
