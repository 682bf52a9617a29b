"""Adds dispatch, returned attempts and the input's hash to jobs, and the table of workers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns, their indexes and the table."""
    op.add_column("jobs", sa.Column("queue", sa.Text(), comment="where its message went last"))
    op.add_column(
        "jobs",
        sa.Column("dispatched_at", sa.DateTime(timezone=True), comment="when; null while it has yet to be sent"),
    )
    op.add_column("jobs", sa.Column("dispatched_to", sa.Text(), comment="the run of Redis that took it"))
    op.add_column(
        "jobs",
        sa.Column(
            "excused",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="attempts given back by workers that were told to stop",
        ),
    )
    op.add_column("jobs", sa.Column("lease_pid", sa.Integer(), comment="the process of that worker which does"))
    op.add_column("jobs", sa.Column("input_sha256", sa.Text(), comment="of the volume as it was stored"))
    op.create_index(
        "ix_jobs_input_sha256",
        "jobs",
        ["input_sha256", "model_sha256"],
        postgresql_where=sa.text("state = 'succeeded'"),
    )
    # From this version on, a failed or cancelled job reserves a location only until it is cleared.
    op.execute("UPDATE jobs SET output_place = NULL WHERE state IN ('failed', 'cancelled')")
    op.drop_index("uq_jobs_output_place", table_name="jobs")
    op.create_index("uq_jobs_output_place", "jobs", ["output_place"], unique=True)
    op.create_index(
        "ix_jobs_uncleared",
        "jobs",
        ["id"],
        postgresql_where=sa.text("state IN ('failed', 'cancelled') AND output_place IS NOT NULL"),
    )
    op.create_index(op.f("ix_jobs_created_at"), "jobs", ["created_at"])
    op.create_index(op.f("ix_jobs_finished_at"), "jobs", ["finished_at"])
    op.create_index(
        "ix_jobs_unreadable", "jobs", ["id"], postgresql_where=sa.text("state = 'queued' AND request IS NULL")
    )
    op.create_index(
        "ix_jobs_started",
        "jobs",
        ["queue", "dispatched_at"],
        postgresql_where=sa.text("state <> 'queued' AND started_at IS NOT NULL"),
    )
    _create_workers()


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
