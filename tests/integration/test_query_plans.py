"""No query of claim, sweep, list, metrics and prune reads all jobs, as the plans of Postgres show."""

from contextlib import closing
from uuid import uuid4

import pytest
from sqlalchemy import text

from benchmarks.database import OPERATIONS, filled_tables, plans
from inference_service.embedded.servers import Servers
from inference_service.embedded.stack import settings_for
from inference_service.jobs.database import connect


@pytest.fixture(scope="module")
def scans(servers: Servers) -> dict[str, set[str]]:
    """How Postgres reads the tables in each operation, with many jobs in a database of its own."""
    settings = settings_for(servers.environment)
    name = f"many_{uuid4().hex}"
    with closing(connect(settings)) as database, database.connection() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            own = settings.model_copy(update={"postgres_db": name})
            with filled_tables(own, finished=20_000, queued=2000) as tables:
                return plans(tables)
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_reads_by_an_index(scans: dict[str, set[str]], operation: str) -> None:
    assert not scans[operation] & {"Seq Scan on jobs", "Seq Scan on transitions"}


@pytest.mark.parametrize(
    ("operation", "scan"),
    [
        ("sweep: find_suspects", "Index Scan using ix_jobs_sent on jobs"),
        ("sweep: find_unsent", "Index Scan using ix_jobs_unsent on jobs"),
    ],
)
def test_a_sweep_does_not_read_the_rows_of_all_queued_jobs(
    scans: dict[str, set[str]], operation: str, scan: str
) -> None:
    assert scan in scans[operation]
