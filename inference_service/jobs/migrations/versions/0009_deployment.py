"""Gives the deployment an id, and records which Redis its workers use."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the table with its only row, and a column."""
    redis = "run, database and key prefix of the Redis that"
    op.create_table(
        "deployment",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("redis", sa.Text(), comment=f"{redis} its workers use"),
        sa.PrimaryKeyConstraint("id", name="pk_deployment"),
    )
    op.execute("INSERT INTO deployment (id) VALUES (gen_random_uuid())")
    op.add_column("workers", sa.Column("redis", sa.Text(), comment=f"{redis} it uses"))


def downgrade() -> None:
    """Drops both."""
    op.drop_column("workers", "redis")
    op.drop_table("deployment")
