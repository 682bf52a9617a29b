"""${message}"""

from alembic import op
import sqlalchemy as sa
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the migration."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Reverts the migration."""
    ${downgrades if downgrades else "pass"}
