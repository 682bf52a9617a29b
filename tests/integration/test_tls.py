"""TLS to the three real servers, behind a proxy with a certificate of the test's own authority."""

import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import trustme
from tls_proxy import proxy

from inference_service.core.errors import DatabaseUnavailable, QueueUnavailable, StorageUnavailable
from inference_service.core.settings import Settings
from inference_service.jobs import job_store
from inference_service.jobs.database import connect
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.queues.redis_state import fetch_redis_state
from inference_service.jobs.storage.object_storage import Storage


@pytest.fixture
def behind_tls(settings: Settings, tmp_path: Path) -> Iterator[dict[str, object]]:
    """Settings with TLS that trust the authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    redis = urlsplit(settings.broker_url)
    with ExitStack() as stack:
        ports = {
            "redis": stack.enter_context(proxy(redis.port or 0, context)),
            "postgres": stack.enter_context(proxy(settings.postgres_port, context, postgres=True)),
            "minio": stack.enter_context(proxy(int(settings.minio_endpoint.rpartition(":")[2]), context)),
        }
        yield {
            **settings.model_dump(),
            "redis_url": f"rediss://127.0.0.1:{ports['redis']}/0",
            "redis_password": redis.password,
            "postgres_port": ports["postgres"],
            "postgres_sslmode": "verify-full",
            "minio_endpoint": f"127.0.0.1:{ports['minio']}",
            "minio_secure": True,
            "tls_ca_path": tmp_path / "ca.pem",
        }


def test_all_three_servers_are_reached(behind_tls: dict[str, object]) -> None:
    settings = Settings.model_validate(behind_tls)
    assert set(fetch_redis_state(make_app(settings)).depths) == {"priority", "overflow"}
    with closing(connect(settings)) as database:
        assert job_store.get(database, uuid4()) is None
    assert not Storage(settings).exists("volumes", "no/such")


def assert_all_three_servers_are_refused(settings: Settings) -> None:
    with pytest.raises(QueueUnavailable):
        fetch_redis_state(make_app(settings))
    with pytest.raises(DatabaseUnavailable):
        job_store.get(connect(settings), uuid4())
    with pytest.raises(StorageUnavailable):
        Storage(settings).exists("volumes", "no/such")


@pytest.mark.parametrize("authority", ["another", "none"])
def test_an_untrusted_certificate_is_refused(behind_tls: dict[str, object], authority: str, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "another.pem")
    trusted = tmp_path / "another.pem" if authority == "another" else None
    settings = Settings.model_validate({**behind_tls, "tls_ca_path": trusted})
    assert_all_three_servers_are_refused(settings)


def test_a_certificate_for_another_name_is_refused(behind_tls: dict[str, object]) -> None:
    settings = Settings.model_validate(
        {
            **behind_tls,
            "redis_url": str(behind_tls["redis_url"]).replace("127.0.0.1", "localhost"),
            "postgres_server": "localhost",
            "minio_endpoint": str(behind_tls["minio_endpoint"]).replace("127.0.0.1", "localhost"),
        }
    )
    assert_all_three_servers_are_refused(settings)
