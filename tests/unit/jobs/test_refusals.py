"""Each way in which a server refuses is named with its remedy."""

from typing import Any

import pytest
from kombu.exceptions import OperationalError
from redis import exceptions
from redis._parsers.base import BaseParser

from inference_service.jobs.queues import refusals
from inference_service.jobs.storage import storage_refusals

PARSE: Any = BaseParser.parse_error


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("NOPERM User x has no permissions to run the 'lpush' command", "NOPERM"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "raise its maxmemory"),
        ("CROSSSLOT Keys in request don't hash to the same slot", "is a cluster"),
        ("MOVED 3999 127.0.0.1:6381", "is a cluster"),
        ("CLUSTERDOWN Hash slot not served", "is a cluster"),
        ("ERR SELECT is not allowed in cluster mode", "is a cluster"),
        ("ERR DB index is out of range", "no database of the number"),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to", "cannot save its data"),
        ("READONLY You can't write against a read only replica.", "must name the primary"),
        ("LOADING Redis is loading the dataset in memory", "wait until it is ready"),
        ("MASTERDOWN Link with MASTER is down", "lost its primary"),
        ("NOREPLICAS Not enough good replicas to write.", "without its replicas"),
        ("NOAUTH Authentication required.", "asks for one"),
        ("WRONGPASS invalid username-password pair", "refuses the password"),
        ("ERR max number of clients reached", "maxclients"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "is not a list"),
        ("DENIED Redis is running in protected mode", "Redis refuses a command (DENIED)"),
        ("ERR unknown command 'X', with args beginning with: 'secret'", "Redis refuses a command"),
    ],
)
@pytest.mark.parametrize("in_pipeline", [False, True])
def test_redis(answer: str, sentence: str, in_pipeline: bool) -> None:
    refused = PARSE(answer)
    if in_pipeline:
        refused.args = (f"Command # 1 (LPUSH overflow) of pipeline caused error: {refused}",)
    wrapped = OperationalError(str(refused))
    wrapped.__cause__ = refused
    for error in (refused, wrapped):
        assert sentence in refusals.refusal(error)
        assert "secret" not in refusals.refusal(error)


@pytest.mark.parametrize("error", [exceptions.ConnectionError("x"), exceptions.TimeoutError("x"), OSError("x")])
def test_redis_that_does_not_answer(error: Exception) -> None:
    assert refusals.refusal(error) == "Redis does not answer"


@pytest.mark.parametrize(
    ("code", "status", "sentence"),
    [
        ("AccessDenied", 403, "denies access"),
        ("InvalidAccessKeyId", 403, "MINIO_ACCESS_KEY"),
        ("SignatureDoesNotMatch", 403, "MINIO_SECRET_KEY"),
        ("RequestTimeTooSkewed", 403, "synchronise"),
        ("EntityTooLarge", 400, "raise its limit"),
        ("SlowDown", 503, "overloaded (SlowDown)"),
        ("XMinioStorageFull", 507, "is full"),
        ("SomethingNew", 400, "refuses: SomethingNew"),
        (None, 413, "raise its limit"),
        (None, 429, "overloaded (429)"),
        (None, 403, "denies access (403)"),
        (None, 502, "does not answer as S3 does (HTTP 502)"),
    ],
)
def test_the_object_storage(code: str | None, status: int, sentence: str) -> None:
    assert sentence in storage_refusals.refusal(code, status)
