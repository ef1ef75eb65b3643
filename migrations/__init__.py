"""Alembic migrations of the ledger's tables; run by `ledger.sql.schema`, never by hand."""
