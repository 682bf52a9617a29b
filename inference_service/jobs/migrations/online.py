"""Changes of large tables beside running jobs.

Each of them first commits the migration as far as it is. A migration that fails later runs again from its start, so its
other steps need `if_not_exists` or the like.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from alembic import op
from sqlalchemy import Connection, text

from inference_service.jobs import database

_ROWS_AT_ONCE = 5000


def create_index(name: str, table: str, columns: list[str], *, unique: bool = False, where: str | None = None) -> None:
    """Creates an index, in place of any other one of its name, while the table is read and written."""
    drop_index(name, table)
    with _outside_transaction():
        op.create_index(
            name,
            table,
            columns,
            unique=unique,
            postgresql_where=None if where is None else text(where),
            postgresql_concurrently=True,
        )


def drop_index(name: str, table: str) -> None:
    """Drops an index, if it exists, while the table is read and written."""
    with _outside_transaction():
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)


def update_jobs(assignments: str, *, where: str) -> None:
    """Updates rows of the table of jobs, a few thousand in each transaction.

    Args:
        assignments: The part of the statement after SET.
        where: The condition of the rows.
    """
    ids = text("SELECT id FROM jobs WHERE id > :last ORDER BY id LIMIT :rows")
    update = text(f"UPDATE jobs SET {assignments} WHERE id > :last AND id <= :end AND {where}")
    last = UUID(int=0)
    with _outside_transaction() as connection:
        while batch := connection.execute(ids, {"last": last, "rows": _ROWS_AT_ONCE}).scalars().all():
            connection.execute(update, {"last": last, "end": batch[-1]})
            last = batch[-1]


@contextmanager
def _outside_transaction() -> Iterator[Connection]:
    """Commits, and waits long for locks: the statements of this module block nobody while they wait."""
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        connection.execute(text(f"SET lock_timeout = {round(database.MIGRATION_PATIENCE_S * 1000)}"))
        yield connection
        connection.execute(text("RESET lock_timeout"))
