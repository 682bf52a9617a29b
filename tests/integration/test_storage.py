"""Objects, against a real S3 server."""

from pathlib import Path
from uuid import uuid4

import pytest

from inference_service.errors import InputNotFound, InputTooLarge, StorageUnavailable
from inference_service.settings import Settings
from inference_service.storage import Storage

BUCKET = "volumes"
LIMIT = 10**6


@pytest.fixture
def key(storage: Storage, tmp_path: Path) -> str:
    """An object of 1000 bytes."""
    source = tmp_path / "source"
    source.write_bytes(bytes(range(250)) * 4)
    key = f"folder with ümlaut/{uuid4()}"
    storage.store(BUCKET, key, source, content_type="application/octet-stream")
    return key


def test_what_was_stored_is_fetched(storage: Storage, key: str, tmp_path: Path) -> None:
    storage.fetch(BUCKET, key, tmp_path / "target", max_bytes=1000)
    assert (tmp_path / "target").read_bytes() == bytes(range(250)) * 4


@pytest.mark.parametrize(("bucket", "missing"), [(BUCKET, "no/such/key"), ("no-such-bucket", "x")])
def test_a_missing_object_is_input_not_found(storage: Storage, bucket: str, missing: str, tmp_path: Path) -> None:
    with pytest.raises(InputNotFound):
        storage.fetch(bucket, missing, tmp_path / "target", max_bytes=LIMIT)
    assert not storage.exists(bucket, missing)


def test_an_object_above_the_limit_is_refused_before_it_is_fetched(storage: Storage, key: str, tmp_path: Path) -> None:
    with pytest.raises(InputTooLarge, match=r"1000 bytes.*at most 999"):
        storage.fetch(BUCKET, key, tmp_path / "target", max_bytes=999)
    assert not (tmp_path / "target").exists()


def test_existing_objects_are_known(storage: Storage, key: str) -> None:
    assert storage.exists(BUCKET, key)


def test_a_bucket_is_made_once(storage: Storage) -> None:
    bucket = f"new-{uuid4().hex}"
    with pytest.raises(StorageUnavailable, match="inference-service migrate"):
        storage.require_bucket(bucket)
    storage.ensure_bucket(bucket)
    storage.ensure_bucket(bucket)
    storage.require_bucket(bucket)


@pytest.mark.parametrize("change", [{"minio_secret_key": "wrong" * 8}, {"minio_endpoint": "127.0.0.1:1"}])
def test_wrong_credentials_and_a_dead_server_are_storage_unavailable(
    settings: Settings, change: dict[str, str], tmp_path: Path
) -> None:
    storage = Storage(Settings.model_validate({**settings.model_dump(), **change}))
    with pytest.raises(StorageUnavailable) as caught:
        storage.fetch(BUCKET, "any", tmp_path / "target", max_bytes=LIMIT)
    assert "wrong" not in caught.value.message
