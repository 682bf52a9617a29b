"""Records the warnings of a job's report."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a column without values, so that the table is not rewritten. Jobs of the version before leave it null."""
    op.add_column(
        "jobs", sa.Column("warnings", postgresql.JSONB(), comment="code and message of each warning of the report")
    )


def downgrade() -> None:
    """Drops the column."""
    op.drop_column("jobs", "warnings")
