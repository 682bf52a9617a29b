"""States that a job which was cancelled before its message came has no request."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_BEFORE = "null where the message broke the contract"
_AFTER = "null where the message broke the contract or came after the cancellation"


def upgrade() -> None:
    """Changes a comment."""
    op.alter_column("jobs", "request", comment=_AFTER, existing_comment=_BEFORE)


def downgrade() -> None:
    """Restores it."""
    op.alter_column("jobs", "request", comment=_BEFORE, existing_comment=_AFTER)
