"""Alembic migrations of the ledger's tables; run by `ledger.store.schema`, never by hand."""
