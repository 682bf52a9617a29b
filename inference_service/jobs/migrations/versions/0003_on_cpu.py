"""Marks jobs that a GPU had too little memory for."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column."""
    op.add_column(
        "jobs",
        sa.Column(
            "on_cpu",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="whether a GPU had too little memory for it",
        ),
    )


def downgrade() -> None:
    """Drops the column."""
    op.drop_column("jobs", "on_cpu")
