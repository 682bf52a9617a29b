"""Alembic's entry point: runs the migrations on the connection that `database.migrate` passes in."""

from alembic import context
from sqlalchemy import text

from inference_service.jobs.schema import Base

# One migration at a time, however many deployments start together. The key is arbitrary.
_ADVISORY_LOCK = 7_204_115_001

connection = context.config.attributes["connection"]
connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
