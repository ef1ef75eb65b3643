"""The first tables: models, events and what lies beside them, snapshots, blobs, triggers.

Frozen SQL, a file for each kind of database, which every database at this revision has byte for
byte. A revision never changes, so neither do they: what comes later is a revision of its own.
"""

from pathlib import Path

from alembic import op
from alembic.util import CommandError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make everything."""
    connection = op.get_bind()
    sql = Path(__file__).with_suffix(f".{connection.dialect.name}.sql").read_text("utf-8")
    for statement in sql.split("\n;\n"):
        if statement:
            connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise CommandError("a ledger is append-only and is not downgraded: restore a backup instead")
