"""Who follows a log, and what each of them showed since when."""

from pathlib import Path

from alembic import op
from alembic.util import CommandError

revision = "0007"
down_revision = "0006"
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
