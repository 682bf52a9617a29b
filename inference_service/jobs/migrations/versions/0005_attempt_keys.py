"""Records the checksums of results, the model's manifest and precision, and attempts that may have stored objects.

Each attempt stores under keys of its own, so `output_place` is no longer written. It and its indexes stay for workers
of the previous version, which may run beside new ones for a while; a later migration drops them.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds three columns and a table."""
    op.add_column("jobs", sa.Column("manifest_sha256", sa.Text()))
    op.add_column("jobs", sa.Column("precision", sa.Text(), comment="precision that the network ran in"))
    op.add_column(
        "jobs",
        sa.Column(
            "checksums",
            postgresql.JSONB(none_as_null=True),
            comment="sha256 and size_bytes of each object of the result, by the names of the result",
        ),
    )
    op.create_table(
        "stored_attempts",
        sa.Column("lease_token", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False, comment="bucket and folder of the attempt's objects"),
        sa.Column(
            "remove_after",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="when the objects are removed, unless the attempt still runs",
        ),
        sa.PrimaryKeyConstraint("lease_token", name="pk_stored_attempts"),
    )
    op.create_index("ix_stored_attempts_remove_after", "stored_attempts", ["remove_after"])


def downgrade() -> None:
    """Drops them. Objects of lost attempts are then removed by nobody."""
    op.drop_table("stored_attempts")
    op.drop_column("jobs", "checksums")
    op.drop_column("jobs", "precision")
    op.drop_column("jobs", "manifest_sha256")
