"""Runs migrations on the connection that `ledger.sql.schema` hands over, in its transaction."""

from alembic import context

from weightledger.ledger.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
