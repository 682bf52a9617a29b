import pytest

from inference_service.core.settings import Settings


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", "redis://h:6379/0"),
        ("rediss://worker:pw@h:1/2", "rediss://worker:pw@h:1/2"),
        ("sentinel://a", "sentinel://a:26379/0"),
        ("sentinel://a:1;sentinel://b:2/3", "sentinel://a:1/3;sentinel://b:2/3"),
        ("sentinel://u:p%40@a;sentinel://b", "sentinel://u:p%40@a:26379/0;sentinel://u:p%40@b:26379/0"),
        ("sentinels://[::1]:1;sentinels://b/", "sentinel://[::1]:1/0;sentinel://b:26379/0"),
    ],
)
def test_celery_gets_complete_urls(url: str, expected: str) -> None:
    assert Settings.model_validate({"redis_url": url}).broker_url == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379/0", "redis://:p%40ss%3A%2F%23%3B@127.0.0.1:6379/0"),
        ("redis://:old@127.0.0.1:6379/0", "redis://:p%40ss%3A%2F%23%3B@127.0.0.1:6379/0"),
        ("rediss://worker@redis.example:6380/2", "rediss://worker:p%40ss%3A%2F%23%3B@redis.example:6380/2"),
        (
            "sentinel://worker@a;sentinel://b",
            "sentinel://worker:p%40ss%3A%2F%23%3B@a:26379/0;sentinel://worker:p%40ss%3A%2F%23%3B@b:26379/0",
        ),
    ],
)
def test_the_broker_url_contains_the_redis_password(url: str, expected: str) -> None:
    assert Settings.model_validate({"redis_url": url, "redis_password": "p@ss:/#;"}).broker_url == expected


@pytest.mark.parametrize(
    ("url", "tls"), [("redis://h", False), ("rediss://h", True), ("sentinel://h", False), ("sentinels://h", True)]
)
def test_the_scheme_decides_about_tls(url: str, tls: bool) -> None:
    assert Settings.model_validate({"redis_url": url}).redis_tls is tls
