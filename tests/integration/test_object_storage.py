"""Objects, against a real S3 server."""

import gzip
import time
import traceback
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from inference_service.core.errors import InputNotFound, InputTooLarge, StorageRefused, StorageUnavailable
from inference_service.core.files import Checksum
from inference_service.core.settings import Settings
from inference_service.jobs.storage.object_storage import Storage, is_outage

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


def test_a_stored_object_is_fetched(storage: Storage, key: str, tmp_path: Path) -> None:
    storage.fetch(BUCKET, key, tmp_path / "target", max_bytes=1000)
    assert (tmp_path / "target").read_bytes() == bytes(range(250)) * 4


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "br"])
def test_an_object_with_a_content_encoding_is_fetched_as_it_was_stored(
    storage: Storage, tmp_path: Path, encoding: str
) -> None:
    content = gzip.compress(b"voxels" * 1000)
    metadata: dict[str, str | list[str] | tuple[str]] = {"Content-Encoding": encoding}
    storage._minio.put_object(BUCKET, "encoded", BytesIO(content), len(content), metadata=metadata)
    storage.fetch(BUCKET, "encoded", tmp_path / "scan", max_bytes=len(content))
    assert (tmp_path / "scan").read_bytes() == content
    assert storage.checksum(BUCKET, "encoded") == Checksum.of_file(tmp_path / "scan")


@pytest.mark.parametrize("bucket", [BUCKET, "no-such-bucket"])
def test_a_missing_object_is_input_not_found(storage: Storage, bucket: str, tmp_path: Path) -> None:
    missing = "no/such/key-of-MUELLER"
    with pytest.raises(InputNotFound) as caught:
        storage.fetch(bucket, missing, tmp_path / "target", max_bytes=LIMIT)
    # The log may have the cause, and a key may name a patient.
    assert "MUELLER" not in "".join(traceback.format_exception(caught.value))
    assert not storage.exists(bucket, missing)


def test_an_object_above_the_limit_is_refused_before_it_is_fetched(storage: Storage, key: str, tmp_path: Path) -> None:
    with pytest.raises(InputTooLarge, match=r"1000 bytes.*at most 999"):
        storage.fetch(BUCKET, key, tmp_path / "target", max_bytes=999)
    assert not (tmp_path / "target").exists()


def test_a_full_disk_is_not_a_storage_error(storage: Storage, key: str, tmp_path: Path) -> None:
    (tmp_path / ".target.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        storage.fetch(BUCKET, key, tmp_path / "target", max_bytes=1000)
    assert not (tmp_path / "target").exists()


def test_the_storage_is_not_blamed_for_a_local_file(settings: Settings, key: str, tmp_path: Path) -> None:
    storage = Storage(settings, retry_for_s=600)
    with pytest.raises(FileNotFoundError):
        storage.fetch(BUCKET, key, tmp_path / "no such folder" / "target", max_bytes=1000)
    with pytest.raises(IsADirectoryError):
        storage.store(BUCKET, key, tmp_path, content_type="text/plain")
    with pytest.raises(FileNotFoundError):
        storage.store(BUCKET, key, tmp_path / "no such file", content_type="text/plain")


def test_all_objects_under_a_prefix_are_fetched_under_numbers(storage: Storage, tmp_path: Path) -> None:
    prefix = f"study {uuid4()}/"
    for name in ("b", "a/ü", "a/deep/er"):
        (tmp_path / "source").write_text(name)
        storage.store(BUCKET, prefix + name, tmp_path / "source", content_type="application/dicom")
    storage.store(BUCKET, prefix.rstrip("/") + "er", tmp_path / "source", content_type="application/dicom")
    storage.fetch_folder(BUCKET, prefix, tmp_path / "target", max_bytes=100)
    fetched = sorted((tmp_path / "target").iterdir())
    assert [path.name for path in fetched] == ["000000", "000001", "000002"]
    assert {path.read_text() for path in fetched} == {"b", "a/ü", "a/deep/er"}


def test_a_prefix_without_objects_is_input_not_found(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="under the prefix"):
        storage.fetch_folder(BUCKET, f"none/{uuid4()}/", tmp_path / "target", max_bytes=100)


def test_a_prefix_of_too_many_bytes_or_objects_is_refused_before_it_is_fetched(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a client: rclone's server answers 500 now and then.
    storage = Storage(settings, retry_for_s=60)
    prefix = f"large/{uuid4()}/"
    (tmp_path / "source").write_bytes(bytes(60))
    for name in "ab":
        storage.store(BUCKET, prefix + name, tmp_path / "source", content_type="application/dicom")
    with pytest.raises(InputTooLarge, match="119 bytes"):
        storage.fetch_folder(BUCKET, prefix, tmp_path / "target", max_bytes=119)
    monkeypatch.setattr("inference_service.jobs.storage.object_storage.MAX_FILES", 1)
    with pytest.raises(InputTooLarge, match="1 objects"):
        storage.fetch_folder(BUCKET, prefix, tmp_path / "target", max_bytes=120)
    assert not (tmp_path / "target").exists()


def test_all_keys_are_listed_although_the_storage_fails_meanwhile(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_service.jobs.storage.object_storage._KEYS_AT_ONCE", 2)
    storage = Storage(settings, retry_for_s=60)
    bucket = f"listed-{uuid4().hex}"
    storage.ensure_bucket(bucket)
    (tmp_path / "source").write_bytes(b"x")
    keys = ["a", "b/c", "b/d/e", "b0", "f ü", "g", "h"]
    for key in keys:
        storage.store(bucket, key, tmp_path / "source", content_type="text/plain")
    list_objects = storage._minio.list_objects
    fails = cycle([True, False])

    def every_other(*arguments: Any, **options: Any) -> Any:
        if next(fails):
            raise ServerError("x", 503)
        return list_objects(*arguments, **options)

    monkeypatch.setattr(storage._minio, "list_objects", every_other)
    assert list(storage.list_keys(bucket)) == keys


def test_an_existing_object_is_found(storage: Storage, key: str) -> None:
    assert storage.exists(BUCKET, key)


def test_a_bucket_is_created_once(storage: Storage) -> None:
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


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (S3Error(Mock(status=403), "AccessDenied", *[None] * 4), StorageRefused, "AccessDenied"),
        (S3Error(Mock(status=503), "SlowDown", *[None] * 4), StorageUnavailable, "overloaded"),
        (InvalidResponseError(413, "text/html", "<html>"), StorageRefused, "raise its limit"),
        (InvalidResponseError(404, "text/html", "<html>"), StorageUnavailable, "HTTP 404"),
        (ServerError("x", 502), StorageUnavailable, "HTTP 502"),
        (ServerError("x", 429), StorageUnavailable, "overloaded"),
    ],
    ids=["denied", "slow-down", "too-large", "no-backend", "bad-gateway", "too-many"],
)
def test_a_refusal_is_told_from_an_outage(
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: MinioException,
    kind: type[StorageUnavailable],
    sentence: str,
) -> None:
    monkeypatch.setattr(storage._minio, "stat_object", Mock(side_effect=answer))
    with pytest.raises(StorageUnavailable, match=sentence) as caught:
        storage.fetch(BUCKET, "any", tmp_path / "target", max_bytes=LIMIT)
    assert type(caught.value) is kind
    assert is_outage(caught.value) == (kind is StorageUnavailable)


def test_a_missing_bucket_is_not_a_missing_input(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x")

    def no_bucket(*_: object, **__: object) -> None:
        raise S3Error(Mock(status=404), "NoSuchBucket", None, None, None, None)

    for name in ("fput_object", "remove_object"):
        monkeypatch.setattr(storage._minio, name, no_bucket)
    with pytest.raises(StorageUnavailable, match="there is no bucket masks: run `inference-service migrate`"):
        storage.store("masks", "a", tmp_path / "file", content_type="text/plain")
    storage.remove("masks", "a")


def test_a_folder_is_stored_under_numbers_and_comes_back(settings: Settings, tmp_path: Path) -> None:
    # As in a client: rclone's server may answer 500 when several requests create a folder at once.
    storage = Storage(settings, retry_for_s=60)
    files = []
    for number in range(30):
        files.append(tmp_path / f"Mueller^Hans {number}.dcm")
        files[-1].write_bytes(bytes([number]) * 1000)
    prefix = f"uploads/{uuid4()}/"
    storage.store_folder(BUCKET, prefix, files, content_type="application/octet-stream")
    storage.fetch_folder(BUCKET, prefix, tmp_path / "target", max_bytes=LIMIT)
    fetched = sorted((tmp_path / "target").iterdir())
    assert [path.name for path in fetched] == [f"{number:06}" for number in range(30)]
    assert [path.read_bytes() for path in fetched] == [path.read_bytes() for path in files]


def test_the_first_failed_object_ends_the_transfer_of_a_folder(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def store(bucket: str, key: str, source: Path, *, content_type: str) -> None:
        begun.append(key)
        time.sleep(0.01)
        raise StorageUnavailable("x")

    monkeypatch.setattr(storage, "store", store)
    with pytest.raises(StorageUnavailable):
        storage.store_folder(BUCKET, "p/", [tmp_path] * 1000, content_type="application/octet-stream")
    assert len(begun) < 100


class _Answer:
    def __init__(self, status: int) -> None:
        self.status = status


@pytest.mark.parametrize(("status", "created"), [(200, True), (412, False)])
def test_an_object_is_created_unless_there_is_one(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, status: int, created: bool
) -> None:
    request = Mock(return_value=_Answer(status))
    monkeypatch.setattr(storage._pool, "request", request)
    assert storage.create(BUCKET, "key", b"content") is created
    assert request.call_args.kwargs == {"body": b"content", "headers": {"If-None-Match": "*"}}


def test_a_storage_without_conditional_writes_stores_the_object(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{uuid4()}"
    # rclone's server ignores the condition, others refuse it.
    assert storage.create(BUCKET, key, b"first")
    with monkeypatch.context() as patch:
        patch.setattr(storage._pool, "request", Mock(return_value=_Answer(501)))
        # The client's own upload uses another method of the pool.
        assert storage.create(BUCKET, key, b"second")
    assert storage.read(BUCKET, key, max_bytes=6) == b"second"
    with pytest.raises(InputTooLarge, match="more than 5 bytes"):
        storage.read(BUCKET, key, max_bytes=5)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (409, StorageUnavailable, "another request stores the same object at this moment"),
        (403, StorageRefused, "denies access"),
        (404, StorageUnavailable, "there is no bucket"),
        (503, StorageUnavailable, "overloaded"),
    ],
)
def test_an_object_that_cannot_be_created(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, status: int, error: type[StorageUnavailable], message: str
) -> None:
    monkeypatch.setattr(storage._pool, "request", Mock(return_value=_Answer(status)))
    with pytest.raises(StorageUnavailable, match=message) as caught:
        storage.create(BUCKET, "key", b"content")
    assert type(caught.value) is error


def test_a_prefix_of_too_many_objects_is_not_listed(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"listed/{uuid4()}/"
    (tmp_path / "source").write_bytes(bytes(60))
    for name in ("b", "a/c"):
        storage.store(BUCKET, prefix + name, tmp_path / "source", content_type="text/plain")
    assert [(each.key, each.size_bytes) for each in storage.list_objects(BUCKET, prefix)] == [
        (f"{prefix}a/c", 60),
        (f"{prefix}b", 60),
    ]
    monkeypatch.setattr("inference_service.jobs.storage.object_storage.MAX_FILES", 1)
    with pytest.raises(StorageRefused, match="more than 1 objects"):
        storage.list_objects(BUCKET, prefix)


def test_a_transfer_is_followed_and_may_be_ended(storage: Storage, key: str, tmp_path: Path) -> None:
    counts: list[int] = []
    storage.fetch(BUCKET, key, tmp_path / "target", max_bytes=1000, follow=counts.append)
    assert counts[-1] == 1000

    def end(_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.fetch(BUCKET, key, tmp_path / "other", max_bytes=1000, follow=end)
    assert [path.name for path in tmp_path.iterdir() if "other" in path.name] == []
