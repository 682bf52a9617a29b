"""Shared by all tests: a clean environment, and the real servers, started once."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import delete

from inference_service.core.settings import Settings, get_settings
from inference_service.embedded.phantom import chest_phantom
from inference_service.embedded.servers import Servers, start_servers
from inference_service.embedded.stack import settings_for
from inference_service.formats.nifti import write_volume
from inference_service.jobs.database import connect
from inference_service.jobs.schema import JobRow
from inference_service.worker.deployment import prepare

REPOSITORY = Path(__file__).parent.parent
MODELS = REPOSITORY / "models"
REAL_SCANS = REPOSITORY.parent / "shared" / "data" / "totalsegmentator"


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Keeps the developer's own configuration from the tests."""
    # A process that a shell runs in the background ignores SIGINT, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
        for name in list(os.environ):
            if name.startswith("OTEL_"):
                patch.delenv(name)
        patch.setitem(Settings.model_config, "env_file", None)
        patch.setenv("MODELS_PATH", str(MODELS))
        get_settings.cache_clear()
        yield


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Real Redis, PostgreSQL and S3 with schema and buckets, but no worker."""
    with start_servers(tmp_path_factory.mktemp("servers"), durable=False) as running:
        prepare(settings_for(running.environment))
        yield running


@pytest.fixture(scope="module")
def no_jobs_left(servers: Servers) -> Iterator[None]:
    """Removes all jobs and messages after the tests of a module: the workers of later tests would run them."""
    yield
    settings = settings_for(servers.environment)
    with Redis.from_url(settings.broker_url) as redis:
        redis.flushdb()
    with closing(connect(settings)) as database, database.begin() as connection:
        connection.execute(delete(JobRow))


@pytest.fixture
def settings(servers: Servers) -> Settings:
    """Settings that reach the servers."""
    return settings_for(servers.environment)


@pytest.fixture(scope="session")
def real_scans() -> Path:
    """The folder of real CTs, which lies outside the repository."""
    if not REAL_SCANS.is_dir():
        pytest.skip(f"real CT data not found: {REAL_SCANS}")
    return REAL_SCANS


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic chest CT."""
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_volume(path, chest_phantom((64, 60, 48), (2.0, 2.0, 3.0)))
    return path
