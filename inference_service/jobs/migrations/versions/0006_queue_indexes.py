"""Indexes for the search of queued jobs that have no message."""

from alembic import op

from inference_service.jobs.migrations import online

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates both."""
    online.create_index("ix_jobs_unsent", "jobs", ["created_at"], where="state = 'queued' AND dispatched_at IS NULL")
    online.create_index(
        "ix_jobs_sent",
        "jobs",
        ["queue", "dispatched_at"],
        where="state = 'queued' AND dispatched_at IS NOT NULL",
    )


def downgrade() -> None:
    """Drops both."""
    op.drop_index("ix_jobs_sent", table_name="jobs")
    op.drop_index("ix_jobs_unsent", table_name="jobs")
