"""Records the trace context in which a job was submitted."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds columns without values, so that the table is not rewritten."""
    comment = "W3C trace context in which the job was submitted"
    op.add_column("jobs", sa.Column("traceparent", sa.Text(), comment=comment))
    op.add_column("jobs", sa.Column("tracestate", sa.Text()))


def downgrade() -> None:
    """Drops them."""
    op.drop_column("jobs", "tracestate")
    op.drop_column("jobs", "traceparent")
