"""Adds the table of webhooks, from which the HTTP gateway reports ends of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the table. Workers do not use it."""
    op.create_table(
        "webhooks",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("tried_end", sa.DateTime(timezone=True), comment="end of the job that was reported last, or tried"),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False, comment="attempts to report that end"),
        sa.Column("settled_end", sa.DateTime(timezone=True), comment="end of the job that is no longer to be reported"),
        sa.Column("error", sa.Text(), comment="why the last attempt failed"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_webhooks")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_webhooks_job_id_jobs"), ondelete="CASCADE"),
    )


def downgrade() -> None:
    """Drops the table."""
    op.drop_table("webhooks")
