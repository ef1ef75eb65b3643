"""What writers have replicas prepare before it is in the log, and what those say."""

from pathlib import Path

from alembic import op
from alembic.util import CommandError

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and their triggers."""
    connection = op.get_bind()
    sql = Path(__file__).with_suffix(f".{connection.dialect.name}.sql").read_text("utf-8")
    for statement in sql.split("\n;\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise CommandError("a ledger is append-only and is not downgraded: restore a backup instead")
