import time

import pytest
from tenacity import wait_none

from inference_service.core.retry import retrying

TIMEOUT_S = 0.3


class Outage(Exception):
    """An error that ends by itself."""


class Server:
    """Fails a number of times before it returns its argument."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.raised: list[Outage] = []

    def __call__(self, value: int) -> int:
        if len(self.raised) < self.failures:
            self.raised.append(Outage(f"failure {len(self.raised)}"))
            raise self.raised[-1]
        return value


def is_outage(error: BaseException) -> bool:
    return isinstance(error, Outage)


def test_a_call_is_repeated_until_the_outage_ends() -> None:
    server = Server(failures=3)
    assert retrying(is_outage, timeout_s=60).copy(wait=wait_none())(server, 7) == 7
    assert len(server.raised) == 3


def test_the_last_error_is_raised_after_the_timeout() -> None:
    server = Server(failures=10**6)
    started = time.monotonic()
    with pytest.raises(Outage) as caught:
        retrying(is_outage, timeout_s=TIMEOUT_S)(server, 7)
    assert time.monotonic() - started >= TIMEOUT_S
    assert len(server.raised) > 1
    assert caught.value is server.raised[-1]


def test_another_error_is_raised_at_once() -> None:
    calls: list[int] = []

    def fail(value: int) -> None:
        calls.append(value)
        raise ValueError("not an outage")

    with pytest.raises(ValueError, match="not an outage"):
        retrying(is_outage, timeout_s=60)(fail, 7)
    assert calls == [7]
