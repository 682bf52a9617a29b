"""Records the tenant of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_BEFORE = "queue of the last message"
_AFTER = "queue of the last message, or the tenant's list of it"


def upgrade() -> None:
    """Adds a column without values, so that the table is not rewritten, and changes a comment."""
    op.alter_column("jobs", "queue", comment=_AFTER, existing_comment=_BEFORE)
    op.add_column("jobs", sa.Column("tenant", sa.Text(), comment="tenant in whose name the job was submitted"))


def downgrade() -> None:
    """Restores both."""
    op.drop_column("jobs", "tenant")
    op.alter_column("jobs", "queue", comment=_BEFORE, existing_comment=_AFTER)
