"""Records who submitted a job."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a column without values, so that the table is not rewritten."""
    op.add_column("jobs", sa.Column("submitted_by", sa.Text(), comment="name that the upstream gave itself"))


def downgrade() -> None:
    """Drops it."""
    op.drop_column("jobs", "submitted_by")
