"""The real Redis, found through a sentinel, with and without TLS."""

import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trustme
from kombu import Connection, Consumer, Message
from redis import Redis
from redis_servers import SETTINGS, start_sentinel
from tls_proxy import proxy

from inference_service.client import Client
from inference_service.contract.task_message import InputReference, SegmentRequest
from inference_service.core.errors import QueueUnavailable
from inference_service.core.settings import Settings
from inference_service.embedded.process import HOST
from inference_service.embedded.servers import Servers
from inference_service.embedded.stack import settings_for
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.queues.redis_state import fetch_redis_state
from inference_service.worker import deployment
from inference_service.worker.deployment import check
from inference_service.worker.messages.redis_transport import SentinelTransport

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")
LIMIT_S = 30.0
# No server listens there.
NOBODY = f"{HOST}:1"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def with_tls(servers: Servers, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings with TLS to the sentinels, of which the first one is away, and to the primary that they name."""
    folder = tmp_path_factory.mktemp("sentinel")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    with (
        # The sentinel itself uses no TLS.
        proxy(servers.redis.port, context, takes_plain=True) as primary,
        start_sentinel(servers, folder / "sentinel", primary) as sentinel,
        proxy(sentinel.port, context, takes_plain=True) as port,
    ):
        yield settings_for(
            {
                **servers.environment,
                **SETTINGS,
                "REDIS_URL": f"sentinels://{NOBODY};sentinels://{HOST}:{port}/0",
                "REDIS_PASSWORD": servers.credentials.redis_password,
                "TLS_CA_PATH": str(folder / "ca.pem"),
            }
        )


@pytest.fixture
def plain(with_tls: Settings) -> Settings:
    """Settings without TLS."""
    url = with_tls.redis_url.get_secret_value().replace("sentinels:", "sentinel:")
    return Settings.model_validate({**with_tls.model_dump(), "redis_url": url, "tls_ca_path": None})


@pytest.fixture(params=["plain", "with_tls"])
def found(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Settings]:
    """Settings with which the primary is found. Its queues are empty before and after the test."""
    with Redis.from_url(settings.broker_url) as redis:
        redis.flushdb()
        yield request.getfixturevalue(request.param)
        redis.flushdb()


def test_a_message_goes_by_the_primary(found: Settings) -> None:
    """A client sends it, and the transport of workers takes it."""
    with Client(found) as client, closing(make_app(found)) as app:
        job_id = client.submit(REQUEST)
        taken: list[Message] = []
        with (
            Connection(
                found.broker_url,
                transport=f"{SentinelTransport.__module__}:SentinelTransport",
                ssl=app.conf.broker_use_ssl,
                transport_options=app.conf.broker_transport_options,
            ) as connection,
            Consumer(connection, list(app.conf.task_queues), on_message=taken.append, accept=["json"]),
        ):
            connection.drain_events(timeout=LIMIT_S)
            assert fetch_redis_state(app).depths["overflow"] == 0
            taken[0].ack()
        assert taken[0].headers["id"] == str(job_id)


def test_the_check_finds_the_primary(found: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "_check_providers", lambda _settings: "")
    (redis,) = (item for item in check(found) if item.name == "redis")
    assert redis.problem is None


@pytest.mark.parametrize(
    "changes",
    [
        {"redis_sentinel_master": "another"},
        {"redis_sentinel_password": "wrong"},
        {"redis_sentinel_username": None, "redis_sentinel_password": None},
        {"redis_url": f"sentinel://{NOBODY}"},
    ],
    ids=str,
)
def test_the_error_names_the_settings_of_the_sentinels(plain: Settings, changes: dict[str, object]) -> None:
    settings = Settings.model_validate({**plain.model_dump(), **changes})
    with (
        closing(make_app(settings)) as app,
        pytest.raises(QueueUnavailable, match=r"sentinels name no primary.*REDIS_SENTINEL_PASSWORD"),
    ):
        fetch_redis_state(app)


def test_untrusted_certificates_are_refused(with_tls: Settings, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "another.pem")
    settings = with_tls.model_copy(update={"tls_ca_path": tmp_path / "another.pem"})
    with closing(make_app(settings)) as app, pytest.raises(QueueUnavailable):
        fetch_redis_state(app)
