"""Records the workers that a job avoids, and of each worker its models and why it takes no jobs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_RETURNED = "attempts that workers returned because they stopped; they do not count"
_NOT_COUNTED = (
    "attempts that do not count: returned by workers that stopped or were at fault, or before a retry on request"
)


def upgrade() -> None:
    """Adds three columns without values, so that no table is rewritten."""
    op.add_column(
        "jobs",
        sa.Column(
            "avoided_workers",
            postgresql.JSONB(none_as_null=True),
            comment="workers that failed on the job by a fault that may be their own",
        ),
    )
    op.alter_column("jobs", "returned_attempts", existing_comment=_RETURNED, comment=_NOT_COUNTED)
    op.add_column(
        "workers",
        sa.Column(
            "models",
            postgresql.JSONB(none_as_null=True),
            comment="name, version and manifest_sha256 of each installed model",
        ),
    )
    op.add_column("workers", sa.Column("paused", sa.Text(), comment="why the worker takes no jobs; null while it does"))


def downgrade() -> None:
    """Drops them."""
    op.drop_column("workers", "paused")
    op.drop_column("workers", "models")
    op.alter_column("jobs", "returned_attempts", existing_comment=_NOT_COUNTED, comment=_RETURNED)
    op.drop_column("jobs", "avoided_workers")
