"""Adds the table of models' summaries, which workers write and the HTTP gateway reads."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the table. Workers of the version before write nothing to it."""
    op.create_table(
        "models",
        sa.Column("manifest_sha256", sa.Text(), nullable=False),
        sa.Column(
            "summary",
            JSONB(none_as_null=True),
            nullable=False,
            comment="fields of the manifest by which people choose the model",
        ),
        sa.PrimaryKeyConstraint("manifest_sha256", name=op.f("pk_models")),
    )


def downgrade() -> None:
    """Drops the table."""
    op.drop_table("models")
