"""Adds the tables of the HTTP gateway: tokens, and uploads that no job may have claimed."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the tables. Workers do not use them."""
    op.create_table(
        "tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="upstream whose jobs the token may see"),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.Text(), nullable=False, comment="SHA-256 of the token itself"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("requests_per_s", sa.Float(), comment="limits; null is no limit"),
        sa.Column("bytes_per_day", sa.BigInteger()),
        sa.Column("queued_jobs", sa.Integer()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.CheckConstraint("role IN ('read', 'submit', 'admin')", name=op.f("ck_tokens_role")),
    )
    op.create_index("ix_tokens_secret_sha256", "tokens", ["secret_sha256"], unique=True)
    op.create_table(
        "uploads",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="upstream that uploads"),
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False, comment="prefix of the objects' keys; no other upload has it"),
        sa.Column("size_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("job_id", sa.Uuid(), comment="job that is to use the upload; its row may not exist"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "remove_after",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="when the objects are removed, unless the job uses them",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index("ix_uploads_remove_after", "uploads", ["remove_after"])


def downgrade() -> None:
    """Drops the tables."""
    op.drop_table("uploads")
    op.drop_table("tokens")
