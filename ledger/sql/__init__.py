"""The database layer: tables, triggers, and what SQLite and PostgreSQL do differently."""
