import pytest

from inference_service.core.errors import ConfigurationError
from inference_service.core.settings import Settings
from inference_service.jobs.database import database_url, migrate


@pytest.mark.parametrize("odd", ["p@ss:/w%rd", "a b+c", "ä€#?&=", "plain", ""])
def test_database_url_carries_odd_names_and_passwords(monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", odd)
    monkeypatch.setenv("POSTGRES_USER", f"user{odd}")
    url = database_url(Settings())
    assert (url.username, url.password) == (f"user{odd}", odd)
    assert (url.drivername, url.host, url.port, url.database) == ("postgresql+psycopg2", "127.0.0.1", 5432, "inference")


def test_database_url_takes_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_SERVER", "::1")
    url = database_url(Settings())
    assert (url.host, url.port) == ("::1", 5432)


def test_migrations_refuse_a_connection_pooler() -> None:
    with pytest.raises(ConfigurationError, match="POSTGRES_POOLER=false"):
        migrate(Settings.model_validate({"postgres_pooler": True}))
