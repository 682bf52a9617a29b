"""TLS to the three real servers, behind a proxy with a certificate of the test's own authority."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest
import trustme

from inference_service.core.errors import DatabaseUnavailable, QueueUnavailable, StorageUnavailable
from inference_service.core.settings import Settings
from inference_service.jobs import job_store
from inference_service.jobs.celery_app import fetch_redis_state, make_app
from inference_service.jobs.database import connect
from inference_service.jobs.object_storage import Storage

# Length of libpq's SSLRequest, which the server answers with one letter.
SSL_REQUEST_BYTES = 8


@contextmanager
def proxy(port: int, context: ssl.SSLContext, *, postgres: bool = False) -> Iterator[int]:
    """Accepts TLS connections on a new port and forwards them in plain text."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                raw, _ = listener.accept()
                threading.Thread(target=handle, args=(raw,), daemon=True).start()

    def handle(raw: socket.socket) -> None:
        with suppress(OSError):
            if postgres:
                raw.recv(SSL_REQUEST_BYTES)
                raw.sendall(b"S")
            with (
                context.wrap_socket(raw, server_side=True) as near,
                socket.create_connection(("127.0.0.1", port)) as far,
            ):
                back = threading.Thread(target=forward, args=(far, near), daemon=True)
                back.start()
                forward(near, far)
                back.join()

    def forward(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


@pytest.fixture
def behind_tls(settings: Settings, tmp_path: Path) -> Iterator[dict[str, object]]:
    """Settings with TLS that trust the authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    redis = settings.redis_url.get_secret_value()
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
