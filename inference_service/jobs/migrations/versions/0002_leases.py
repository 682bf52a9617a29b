"""Adds dispatch, returned attempts and the input's hash to jobs, and the table of workers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from inference_service.jobs.migrations import online

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns, their indexes and the table."""
    for column in (
        sa.Column("queue", sa.Text(), comment="where its message went last"),
        sa.Column("dispatched_at", sa.DateTime(timezone=True), comment="when; null while it has yet to be sent"),
        sa.Column("dispatched_to", sa.Text(), comment="the run of Redis that took it"),
        sa.Column(
            "excused",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="attempts given back by workers that were told to stop",
        ),
        sa.Column("lease_pid", sa.Integer(), comment="the process of that worker which does"),
        sa.Column("input_sha256", sa.Text(), comment="of the volume as it was stored"),
    ):
        op.add_column("jobs", column, if_not_exists=True)
    _create_workers()
    # From this version on, a failed or cancelled job reserves a location only until it is cleared.
    ended = "state IN ('failed', 'cancelled')"
    online.update_jobs("output_place = NULL", where=f"{ended} AND output_place IS NOT NULL")
    online.create_index("uq_jobs_output_place", "jobs", ["output_place"], unique=True)
    online.create_index("ix_jobs_uncleared", "jobs", ["id"], where=f"{ended} AND output_place IS NOT NULL")
    online.create_index("ix_jobs_input_sha256", "jobs", ["input_sha256", "model_sha256"], where="state = 'succeeded'")
    online.create_index("ix_jobs_created_at", "jobs", ["created_at"])
    online.create_index("ix_jobs_finished_at", "jobs", ["finished_at"])
    online.create_index("ix_jobs_unreadable", "jobs", ["id"], where="state = 'queued' AND request IS NULL")
    online.create_index(
        "ix_jobs_started", "jobs", ["queue", "dispatched_at"], where="state <> 'queued' AND started_at IS NOT NULL"
    )


def _create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("providers", postgresql.JSONB(), nullable=False, comment="execution providers in use"),
        sa.Column("queues", postgresql.JSONB(), nullable=False, comment="consumed now, in order"),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it last consumed",
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
        if_not_exists=True,
    )


def downgrade() -> None:
    """Drops them, and restores the unique index of locations."""
    op.drop_table("workers")
    for name in (
        "ix_jobs_started",
        "ix_jobs_unreadable",
        "ix_jobs_finished_at",
        "ix_jobs_created_at",
        "ix_jobs_uncleared",
        "uq_jobs_output_place",
    ):
        op.drop_index(name, table_name="jobs")
    op.create_index(
        "uq_jobs_output_place",
        "jobs",
        ["output_place"],
        unique=True,
        postgresql_where=sa.text("state NOT IN ('failed', 'cancelled')"),
    )
    op.drop_index("ix_jobs_input_sha256", table_name="jobs")
    for column in ("input_sha256", "lease_pid", "excused", "dispatched_to", "dispatched_at", "queue"):
        op.drop_column("jobs", column)
