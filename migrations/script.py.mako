"""${message}."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """Change the tables; batch mode on SQLite drops triggers, make them again at the end."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    raise CommandError("a ledger is append-only and is not downgraded: restore a backup instead")
