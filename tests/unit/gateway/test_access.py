from datetime import UTC, datetime
from uuid import uuid4

import pytest

from inference_service.gateway.access import RateLimit
from inference_service.gateway.problems import Refusal
from inference_service.jobs.gateway.tokens import Limits, Token, TokenRole


@pytest.mark.parametrize("rate", [0.3, 0.7, 3.0])
def test_a_request_is_permitted_when_the_refusal_says(rate: float) -> None:
    now = 1000.0
    limit = RateLimit(lambda: now)
    token = Token(uuid4(), "pacs", TokenRole.READ, Limits(requests_per_s=rate), datetime.now(UTC))

    def spend() -> None:
        for _ in range(100):
            limit.take(token)

    with pytest.raises(Refusal) as refused:
        spend()
    now += int(refused.value.headers["Retry-After"])
    limit.take(token)
