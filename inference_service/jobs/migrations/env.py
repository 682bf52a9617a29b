"""Alembic's entry point: runs the migrations on the connection that `database.run_alembic` passes in."""

import time

from alembic import context
from sqlalchemy import Connection, text

from inference_service.core.errors import DatabaseUnavailable
from inference_service.jobs import database
from inference_service.jobs.schema import Base

# One migration at a time, however many deployments start together. The key is arbitrary.
_ADVISORY_LOCK = 7_204_115_001
_POLL_S = 0.5


def _take_lock(connection: Connection) -> None:
    """Waits for the lock, which is held until the connection ends.

    It asks again and again: a statement that waits would hold a snapshot, and the holder's CREATE INDEX CONCURRENTLY
    waits for the end of all snapshots.

    Raises:
        DatabaseUnavailable: Another migration has held it for too long.
    """
    deadline = time.monotonic() + database.MIGRATION_PATIENCE_S
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY_LOCK}).scalar_one():
        connection.rollback()
        if time.monotonic() > deadline:
            raise DatabaseUnavailable("another migration is still running: run `inference-service migrate` again later")
        time.sleep(_POLL_S)
    connection.commit()


_connection = context.config.attributes["connection"]
_take_lock(_connection)
context.configure(connection=_connection, target_metadata=Base.metadata, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
