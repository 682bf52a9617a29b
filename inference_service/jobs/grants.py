"""The rights of the service's Postgres roles; `deploy/identities` creates the roles.

The owner of the tables, which runs `migrate`, grants the rights. A database with one user for everything has no such
role, and nothing is granted.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import text

from inference_service.jobs.database import Database
from inference_service.jobs.schema import (
    Base,
    DeploymentRow,
    JobRow,
    ModelRow,
    TokenRow,
    TransitionRow,
    UploadRow,
    WebhookRow,
    WorkerRow,
)

_JOBS = JobRow.__tablename__
_TRANSITIONS = TransitionRow.__tablename__
_TABLES = [table.name for table in Base.metadata.sorted_tables]
# A worker does not know the gateway.
_WORKER_TABLES = [
    name for name in _TABLES if name not in {TokenRow.__tablename__, UploadRow.__tablename__, WebhookRow.__tablename__}
]
_TRANSITION_IDS = f"USAGE ON SEQUENCE {_TRANSITIONS}_id_seq"
# The columns that an upstream writes. The trigger of migration 0013 limits their values and the rows.
_CREATED = "id, state, request, submitted_by, tenant, traceparent, tracestate"
_DISPATCHED = "queue, dispatched_at, redis_run_id"
_CANCELLED = "cancel_requested, state, finished_at, error_code, error_message"
_RETRIED = "returned_attempts, avoided_workers, not_before, on_cpu, started_at, stage, progress, timings_s"
_CHANGE = "job_id, from_state, to_state, attempt, worker, detail"

_UPSTREAM = (
    f"SELECT, INSERT ({_CREATED}), UPDATE ({_DISPATCHED}, {_CANCELLED}, {_RETRIED}) ON {_JOBS}",
    f"SELECT, INSERT ({_CHANGE}) ON {_TRANSITIONS}",
    _TRANSITION_IDS,
    f"SELECT ON {WorkerRow.__tablename__}",
    f"SELECT ON {DeploymentRow.__tablename__}",
)

RIGHTS: Mapping[str, Sequence[str]] = {
    "inference_worker": (
        *(f"SELECT, INSERT, UPDATE, DELETE ON {table}" for table in _WORKER_TABLES),
        _TRANSITION_IDS,
    ),
    "inference_upstream": _UPSTREAM,
    # Its tokens are made by the role that owns the tables.
    "inference_gateway": (
        *_UPSTREAM,
        f"SELECT ON {TokenRow.__tablename__}",
        f"SELECT ON {ModelRow.__tablename__}",
        *(
            f"SELECT, INSERT, UPDATE, DELETE ON {table}"
            for table in (UploadRow.__tablename__, WebhookRow.__tablename__)
        ),
    ),
    "inference_monitoring": tuple(f"SELECT ON {table}" for table in _WORKER_TABLES),
    "inference_keda": (f"SELECT (state, lease_owner) ON {_JOBS}",),
}
"""What each role may do, as in GRANT."""

# One run at a time: Postgres refuses two that change the rights of a table together. The key is "grant" in ASCII.
_LOCK_KEY = 0x6772616E74


def grant_rights(database: Database) -> None:
    """Gives each role that exists exactly its rights on the service's tables.

    Args:
        database: A connection as the owner of the tables.

    Raises:
        DatabaseUnavailable: Postgres does not answer or refuses.
    """
    with database.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        found = connection.execute(
            text("SELECT rolname FROM pg_roles WHERE rolname = ANY(:names)"), {"names": [*RIGHTS]}
        )
        for role in found.scalars():
            connection.execute(text(f"REVOKE ALL ON {', '.join(_TABLES)} FROM {role}"))
            for right in RIGHTS[role]:
                connection.execute(text(f"GRANT {right} TO {role}"))


def missing_rights(database: Database) -> list[str]:
    """Lists the rights of a worker that the role of this connection lacks, such as "INSERT on jobs".

    Raises:
        DatabaseUnavailable: Postgres does not answer, or the tables do not exist.
    """
    tables = text(
        "SELECT privilege || ' on ' || name FROM unnest(CAST(:tables AS text[])) AS name, "
        "unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege "
        "WHERE NOT has_table_privilege(name, privilege)"
    )
    sequence = text(
        f"SELECT 'USAGE on {_TRANSITIONS}_id_seq' WHERE NOT has_sequence_privilege('{_TRANSITIONS}_id_seq', 'USAGE')"
    )
    with database.connection() as connection:
        missing = list(connection.execute(tables, {"tables": _WORKER_TABLES}).scalars())
        return missing + list(connection.execute(sequence).scalars())
