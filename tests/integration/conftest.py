"""Connections to the real servers."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, update

from inference_service.core.settings import Settings
from inference_service.jobs.database import Database, connect
from inference_service.jobs.object_storage import Storage
from inference_service.jobs.schema import JobRow


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with closing(connect(settings)) as opened:
        yield opened


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings)


@pytest.fixture
def expire_lease(database: Database) -> Callable[[UUID], None]:
    """Lets the lease of a job expire now."""

    def expire(job_id: UUID) -> None:
        past = func.now() - timedelta(seconds=1)
        with database.begin() as connection:
            connection.execute(update(JobRow).where(JobRow.id == job_id).values(lease_expires_at=past))

    return expire
