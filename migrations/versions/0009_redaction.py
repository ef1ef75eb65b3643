"""A role that can only append may take texts away, by a function of the owner's (PostgreSQL)."""

from pathlib import Path

from alembic import op
from alembic.util import CommandError

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the function."""
    connection = op.get_bind()
    sql = Path(__file__).with_suffix(f".{connection.dialect.name}.sql").read_text("utf-8")
    for statement in sql.split("\n;\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise CommandError("a ledger is append-only and is not downgraded: restore a backup instead")
