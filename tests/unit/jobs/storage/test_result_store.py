from typing import cast
from uuid import uuid4

import pytest

from inference_service.contract.result_files import result_files
from inference_service.jobs.attempts import Claim
from inference_service.jobs.storage.object_storage import Storage
from inference_service.jobs.storage.result_store import ResultStore, attempt_location

STORAGE = cast("Storage", None)


def a_claim(attempt: int = 1) -> Claim:
    return Claim(uuid4(), attempt, 0, uuid4(), "w", None, on_cpu=False)


def test_every_file_has_a_key_in_the_row() -> None:
    files = result_files(["mha"], scan=True)
    result = ResultStore(STORAGE, "masks/a/b", files).result
    assert result.pop("bucket") == "masks"
    assert sorted(result.values()) == sorted(f"a/b/{name}" for name in files.values())


@pytest.mark.parametrize(("prefix", "start"), [(None, "masks/"), ("study-1", "masks/study-1/"), ("a/b/", "masks/a/b/")])
def test_the_folder_of_an_attempt_is_below_the_prefix(prefix: str | None, start: str) -> None:
    claim = a_claim(attempt=2)
    assert attempt_location(claim, "masks", prefix) == f"{start}{claim.job_id}/2-{claim.token.hex}"


def test_a_key_stays_within_the_limit_of_s3() -> None:
    location = attempt_location(a_claim(attempt=10**6), "b", "p" * 900)
    keys = [key for name, key in ResultStore(STORAGE, location).result.items() if name != "bucket"]
    assert max(len(key) for key in keys) <= 1024
