"""Which replica measured, and while which rollout ran."""

from pathlib import Path

from alembic import op
from alembic.util import CommandError

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two columns and the index by which a rollout is read."""
    connection = op.get_bind()
    sql = Path(__file__).with_suffix(f".{connection.dialect.name}.sql").read_text("utf-8")
    for statement in sql.split("\n;\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise CommandError("a ledger is append-only and is not downgraded: restore a backup instead")
