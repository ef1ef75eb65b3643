"""The first tables: models, events and what lies beside them, snapshots, blobs, triggers."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

from weightledger.ledger.sql import triggers

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_BYTES = sa.LargeBinary()


def upgrade() -> None:
    """Make everything; the tables are spelled out, since a revision never changes."""
    _models_and_events()
    _beside_events()
    _blobs_and_snapshots()
    connection = op.get_bind()
    dialect = connection.dialect.name
    if dialect == "postgresql":
        # Payloads are compressed already; out of line and as they are, they read fastest.
        for table, column in (("events", "payload"), ("events", "header"), ("blob_parts", "data")):
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")
    for statement in triggers.statements(dialect):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise CommandError("a ledger is append-only and is not downgraded: restore a backup instead")


def _models_and_events() -> None:
    op.create_table(
        "models",
        sa.Column("model_id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.UniqueConstraint("name", name="models_name"),
    )
    op.create_table(
        "events",
        sa.Column("event_key", _KEY, primary_key=True, autoincrement=False),
        sa.Column("model_id", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("node", sa.BigInteger, nullable=False),
        sa.Column("parent", sa.BigInteger),
        sa.Column("changes_state", sa.SmallInteger, nullable=False),
        sa.Column("forward_only", sa.SmallInteger, nullable=False),
        sa.Column("series", sa.Text),
        sa.Column("number", sa.BigInteger),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("state_after", _BYTES, nullable=False),
        sa.Column("payload_size", sa.BigInteger, nullable=False),
        sa.Column("header", _BYTES, nullable=False),
        sa.Column("event_hash", _BYTES, nullable=False),
        sa.Column("payload", _BYTES),
        sa.CheckConstraint("event_key >> 40 = model_id", name="events_key"),
    )
    _partial_index(
        "events_idempotency",
        ["model_id", "idempotency_key"],
        "idempotency_key IS NOT NULL",
        unique=True,
    )
    _partial_index(
        "events_number",
        ["model_id", "series", "number"],
        "number IS NOT NULL",
        unique=True,
    )
    _partial_index("events_kind", ["kind", "event_key"], "kind <> 'updated'")
    _partial_index("events_state", ["state_after", "event_key"], "changes_state = 1")


def _partial_index(
    name: str,
    columns: list[str],
    where: str,
    *,
    unique: bool = False,
    table: str = "events",
) -> None:
    op.create_index(
        name,
        table,
        columns,
        unique=unique,
        sqlite_where=sa.text(where),
        postgresql_where=sa.text(where),
    )


def _beside_events() -> None:
    op.create_table(
        "annotations",
        sa.Column("event_key", _KEY, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("actor", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("metadata", sa.Text),
        sa.Column("salt", _BYTES, nullable=False),
    )
    op.create_index("annotations_actor", "annotations", ["actor", "kind", "event_key"])
    op.create_table(
        "parameters",
        sa.Column("parameter_id", _KEY, sa.Identity(), primary_key=True),
        sa.Column("model_id", sa.Integer, sa.ForeignKey("models.model_id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.UniqueConstraint("model_id", "name", name="parameters_name"),
    )
    op.create_table(
        "touches",
        sa.Column("parameter_id", _KEY, primary_key=True, autoincrement=False),
        sa.Column("event_key", _KEY, primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text),
        sqlite_with_rowid=False,
    )
    _partial_index(
        "touches_actor",
        ["parameter_id", "actor", "event_key"],
        "actor IS NOT NULL",
        table="touches",
    )
    op.create_table(
        "listed_versions",
        sa.Column("model_id", sa.Integer, sa.ForeignKey("models.model_id"), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("event_key", _KEY, nullable=False),
        sa.Column("node", sa.BigInteger, nullable=False),
        sa.Column("pinned", sa.SmallInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("listed_versions_node", "listed_versions", ["model_id", "node", "number"])


def _blobs_and_snapshots() -> None:
    op.create_table(
        "snapshots",
        sa.Column("model_id", sa.Integer, sa.ForeignKey("models.model_id"), primary_key=True),
        sa.Column("node", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("manifest", _BYTES, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "blobs",
        sa.Column("digest", _BYTES, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("touched_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "blob_parts",
        sa.Column("digest", _BYTES, primary_key=True),
        sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", _BYTES, nullable=False),
    )
    op.create_table(
        "blob_location",
        sa.Column("only_row", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("url", sa.Text),
        sa.CheckConstraint("only_row = 1", name="blob_location_only_row"),
    )
