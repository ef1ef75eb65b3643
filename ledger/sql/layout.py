"""Numbers of the tables that code needs without their definitions.

An event's primary key is `(model_id << SEQ_BITS) | seq`.
"""

REVISION = "0010"  # the alembic revision that `ledger.sql.tables` is

SEQ_BITS = 40
SEQ_MASK = (1 << SEQ_BITS) - 1
