"""Renames `excused` to `returned_attempts` and `dispatched_to` to `redis_run_id`, and rewrites comments.

Workers of the previous version run beside new ones for a while, so this migration only adds the new columns: a trigger
copies each write of an old column to its new one, and the reverse. A later migration drops the old columns and the
trigger. `output_place` keeps its name: its reservation is to be replaced, and the column dropped.
"""

import sqlalchemy as sa
from alembic import op

from inference_service.jobs.migrations import online

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Comment before and after, of each column.
COMMENTS = {
    ("jobs", "output_place"): (
        "bucket and prefix that its results are reserved",
        "bucket and prefix reserved for the results",
    ),
    ("jobs", "queue"): (
        "where its message went last",
        "queue of the last message",
    ),
    ("jobs", "dispatched_at"): (
        "when; null while it has yet to be sent",
        "when that message was sent; null while one is to be sent",
    ),
    ("jobs", "on_cpu"): (
        "whether a GPU had too little memory for it",
        "whether a GPU failed on the job or had too little memory for it",
    ),
    ("jobs", "lease_owner"): (
        "the worker that runs it, or ran it last",
        "worker that runs the job, or ran it last",
    ),
    ("jobs", "lease_pid"): (
        "the process of that worker which does",
        "process of that worker",
    ),
    ("jobs", "lease_token"): (
        "what every write of an outcome must present",
        "the fence: each write of an attempt must present it",
    ),
    ("jobs", "providers"): (
        "execution providers really used",
        "execution providers that were used",
    ),
    ("jobs", "result"): (
        "bucket and keys of mask and report",
        "bucket and keys of the stored objects",
    ),
    ("jobs", "input_sha256"): (
        "of the volume as it was stored",
        "sha256 of the volume as it was stored",
    ),
    ("jobs", "excused"): (
        "attempts given back by workers that were told to stop",
        "old name of returned_attempts",
    ),
    ("jobs", "dispatched_to"): (
        "the run of Redis that took it",
        "old name of redis_run_id",
    ),
    ("workers", "queues"): (
        "consumed now, in order",
        "queues that the worker consumes, in order",
    ),
    ("workers", "seen_at"): (
        "when it last consumed",
        "time of the last heartbeat",
    ),
}


def upgrade() -> None:
    """Adds the new columns, and the trigger that keeps them equal to the old ones."""
    for column in (
        sa.Column(
            "returned_attempts",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="attempts that workers returned because they stopped; they do not count",
        ),
        sa.Column("redis_run_id", sa.Text(), comment="run of Redis that accepted the last message"),
    ):
        op.add_column("jobs", column, if_not_exists=True)
    op.execute(
        """
        CREATE OR REPLACE FUNCTION copy_renamed_columns() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.returned_attempts IS DISTINCT FROM OLD.returned_attempts THEN
                NEW.excused = NEW.returned_attempts;
            ELSE
                NEW.returned_attempts = NEW.excused;
            END IF;
            IF NEW.redis_run_id IS DISTINCT FROM OLD.redis_run_id THEN
                NEW.dispatched_to = NEW.redis_run_id;
            ELSE
                NEW.redis_run_id = NEW.dispatched_to;
            END IF;
            RETURN NEW;
        END
        $$
        """
    )
    op.execute("DROP TRIGGER IF EXISTS copy_renamed_columns ON jobs")
    op.execute(
        """
        CREATE TRIGGER copy_renamed_columns
        BEFORE UPDATE OF excused, returned_attempts, dispatched_to, redis_run_id ON jobs
        FOR EACH ROW EXECUTE FUNCTION copy_renamed_columns()
        """
    )
    for (table, column_name), (before, after) in COMMENTS.items():
        op.alter_column(table, column_name, existing_comment=before, comment=after)
    # Nothing reads these columns of a finished job. The trigger copies the values.
    online.update_jobs("excused = excused", where="state IN ('queued', 'running')")


def downgrade() -> None:
    """Drops the trigger and the new columns; the old ones have their values."""
    for (table, column), (before, after) in COMMENTS.items():
        op.alter_column(table, column, existing_comment=after, comment=before)
    op.execute("DROP TRIGGER copy_renamed_columns ON jobs")
    op.execute("DROP FUNCTION copy_renamed_columns()")
    op.drop_column("jobs", "redis_run_id")
    op.drop_column("jobs", "returned_attempts")
