"""Objects in MinIO or another S3 storage: downloads of bounded size, uploads, errors as the service's own.

Errors of local files pass unchanged, as OSError.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from io import BytesIO
from itertools import islice
from pathlib import Path
from secrets import token_bytes
from typing import BinaryIO, TypeVar, cast

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from inference_service.core.errors import (
    InputNotFound,
    InputTooLarge,
    ResultDamaged,
    StorageRefused,
    StorageUnavailable,
    redacted,
)
from inference_service.core.files import MAX_FILES, Checksum, Readable, numbered_name
from inference_service.core.retry import retrying
from inference_service.core.settings import Settings
from inference_service.jobs.storage.storage_refusals import refusal

Item = TypeVar("Item")
Follow = Callable[[int], None]
"""Called with the bytes that have been transferred. It may raise an error to end the transfer."""

_CONNECT_TIMEOUT_S = 5.0
# The objects of a DICOM series are small, so most of a transfer's time is latency.
_CONCURRENT_TRANSFERS = 8
_CHUNK_BYTES = 2**20
# S3 takes up to 10,000 parts, so streams of up to 78 GiB.
_PART_BYTES = 8 * 2**20
# As many as S3 lists in one answer.
_KEYS_AT_ONCE = 1000
_SERVER_ERROR = 500
# Request timeout, too many requests.
_PASSING = {408, 429}
# Other answers of a proxy may come from its start or from an outage behind it.
_REFUSED_BY_A_PROXY = {401, 403, 413}
_NOT_FOUND = {"NoSuchKey", "NoSuchBucket", "NoSuchObject", "ResourceNotFound"}
_URL_LIFETIME = timedelta(minutes=5)
_OK = 200
_NO_BUCKET = 404
# Precondition failed.
_EXISTS = 412
# Another request for the same key is under way.
_CONFLICT = 409
_NOT_IMPLEMENTED = 501


@dataclass(frozen=True)
class StoredObject:
    """An object as the storage lists it.

    Attributes:
        key: Its key.
        size_bytes: Its size.
        stamp: Changes when the object is replaced.
    """

    key: str
    size_bytes: int
    stamp: tuple[str | None, datetime | None]


def _no_follow(transferred_bytes: int) -> None:
    """A `Follow` that does nothing."""


class Storage:
    """The object storage. One instance may be shared between threads.

    Args:
        settings: Address, credentials and TLS.
        retry_for_s: How long a call is repeated during an outage.
        read_timeout_s: How long a call waits for the next bytes of an answer.
    """

    def __init__(self, settings: Settings, *, retry_for_s: float = 0.0, read_timeout_s: float = 60.0) -> None:
        self._retrying = retrying(is_outage, timeout_s=retry_for_s)
        self._pool = urllib3.PoolManager(
            maxsize=_CONCURRENT_TRANSFERS,
            timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=read_timeout_s),
            retries=False,
            ca_certs=str(settings.tls_ca_path) if settings.tls_ca_path else None,
        )
        self._minio = Minio(
            settings.minio_endpoint,
            access_key=settings.minio_access_key.get_secret_value(),
            secret_key=settings.minio_secret_key.get_secret_value(),
            secure=settings.minio_secure,
            region=settings.minio_region,
            http_client=self._pool,
        )

    def ensure_bucket(self, bucket: str) -> None:
        """Creates a bucket if it does not exist."""
        with _mapped_errors():
            if not self._minio.bucket_exists(bucket):
                self._minio.make_bucket(bucket)

    def require_bucket(self, bucket: str) -> None:
        """Checks that a bucket exists.

        Raises:
            StorageUnavailable: It does not exist, or the storage does not answer or refuses.
        """
        with _mapped_errors():
            if not self._minio.bucket_exists(bucket):
                raise _no_bucket(bucket)

    def fetch(self, bucket: str, key: str, target: Path, *, max_bytes: int, follow: Follow = _no_follow) -> None:
        """Downloads an object into a file.

        Args:
            bucket: The bucket.
            key: The object's key.
            target: The file.
            max_bytes: A larger object is refused before it is downloaded.
            follow: Called as the download goes on.

        Raises:
            InputNotFound: The object does not exist.
            InputTooLarge: The object has more than `max_bytes`.
            StorageUnavailable: The storage does not answer or refuses.
        """
        self._retrying(self._fetch, bucket, key, target, max_bytes=max_bytes, follow=follow)

    def _fetch(self, bucket: str, key: str, target: Path, *, max_bytes: int, follow: Follow) -> None:
        partial = target.with_name(f".{target.name}.part")
        with _mapped_errors():
            size = self._minio.stat_object(bucket, key).size or 0
            if size > max_bytes:
                raise InputTooLarge(f"the object has {size} bytes; this service accepts at most {max_bytes}")
            try:
                with self._opened(bucket, key) as response, partial.open("wb") as file:
                    for chunk in response.stream(_CHUNK_BYTES):
                        file.write(chunk)
                        if file.tell() > size:
                            raise StorageUnavailable("the object changed while it was fetched")
                        follow(file.tell())
                partial.rename(target)
            finally:
                partial.unlink(missing_ok=True)

    @contextmanager
    def _opened(self, bucket: str, key: str, offset: int = 0, length: int | None = None) -> Iterator[BaseHTTPResponse]:
        response = self._minio.get_object(bucket, key, offset=offset, length=length or 0)
        # An object is the bytes that were stored, also if its Content-Encoding says that they are compressed.
        response.decode_content = False
        try:
            yield response
        finally:
            response.close()
            response.release_conn()

    def stream(self, bucket: str, key: str, *, offset: int = 0, length: int | None = None) -> Generator[bytes]:
        """Reads an object, or a range of its bytes, in pieces of at most 1 MiB.

        Args:
            bucket: The bucket.
            key: The object's key.
            offset: First byte of the range.
            length: Length of the range in bytes; None: up to the end.

        Raises:
            InputNotFound: The object does not exist.
            StorageUnavailable: The storage does not answer or refuses, maybe after some pieces.
        """
        with _mapped_errors(), self._opened(bucket, key, offset, length) as response:
            yield from response.stream(_CHUNK_BYTES)

    def fetch_verified(
        self, bucket: str, key: str, target: Path, expected: Checksum, *, follow: Follow = _no_follow
    ) -> None:
        """Downloads an object into a file, which appears only if its content is the expected one.

        Args:
            bucket: The bucket.
            key: The object's key.
            target: The file.
            expected: Size and SHA-256 of the content.
            follow: Called as the download goes on.

        Raises:
            InputNotFound: The object does not exist.
            ResultDamaged: Its size or SHA-256 is another one.
            StorageUnavailable: The storage does not answer or refuses.
        """
        unverified = target.with_name(f".{target.name}.unverified")
        try:
            try:
                self.fetch(bucket, key, unverified, max_bytes=expected.size_bytes, follow=follow)
            except InputTooLarge as error:
                raise ResultDamaged(f"{key} has more than the expected {expected.size_bytes} bytes") from error
            found = Checksum.of_file(unverified)
            if found != expected:
                raise ResultDamaged(
                    f"{key}: expected {expected.size_bytes} bytes with sha256 {expected.sha256}, "
                    f"got {found.size_bytes} with {found.sha256}"
                )
            unverified.rename(target)
        finally:
            unverified.unlink(missing_ok=True)

    def read(self, bucket: str, key: str, *, max_bytes: int) -> bytes:
        """Returns the content of a small object; raises the errors of `fetch`."""
        return self._retrying(self._read, bucket, key, max_bytes=max_bytes)

    def _read(self, bucket: str, key: str, *, max_bytes: int) -> bytes:
        with _mapped_errors():
            # The client does not understand how rclone's server answers a GET of a missing object.
            self._minio.stat_object(bucket, key)
            with self._opened(bucket, key) as response:
                content = response.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise InputTooLarge(f"the object has more than {max_bytes} bytes")
        return content

    def fetch_folder(self, bucket: str, prefix: str, target: Path, *, max_bytes: int) -> None:
        """Downloads all objects under a prefix into files with the names of `numbered_name`: no key becomes a path.

        Args:
            bucket: The bucket.
            prefix: The prefix, with its final slash.
            target: The folder to create.
            max_bytes: Limit of all objects together.

        Raises:
            InputNotFound: There is no object, or one of them was removed meanwhile.
            InputTooLarge: The objects have more than `max_bytes` together, or are more than MAX_FILES.
            StorageUnavailable: The storage does not answer or refuses.
        """
        keys = self._retrying(self._list, bucket, prefix, max_bytes=max_bytes)
        target.mkdir(exist_ok=True)
        _transfer_all(
            lambda number, key: self.fetch(bucket, key, target / numbered_name(number, key), max_bytes=max_bytes), keys
        )

    def _list(self, bucket: str, prefix: str, *, max_bytes: int) -> list[str]:
        keys = []
        size = 0
        with _mapped_errors():
            for found in self._minio.list_objects(bucket, prefix, recursive=True):
                # S3 consoles represent folders as empty objects.
                if found.is_dir or str(found.object_name).endswith("/"):
                    continue
                keys.append(str(found.object_name))
                size += found.size or 0
                if len(keys) > MAX_FILES or size > max_bytes:
                    raise InputTooLarge(
                        f"the prefix holds more than the {MAX_FILES} objects or {max_bytes} bytes that are accepted"
                    )
        if not keys:
            raise InputNotFound("there is no object under the prefix of the request")
        return keys

    def store(self, bucket: str, key: str, source: Path, *, content_type: str) -> None:
        """Uploads a file.

        Raises:
            StorageUnavailable: The storage does not answer or refuses.
        """
        self._retrying(self._store, bucket, key, source, content_type)

    def store_stream(self, bucket: str, key: str, stream: Readable, *, content_type: str) -> None:
        """Uploads a stream of unknown length, which is held in memory by parts of 8 MiB.

        Nothing is stored if the stream raises an error, which passes unchanged.

        Raises:
            StorageUnavailable: The storage does not answer or refuses. It is asked once: a stream is read once.
        """
        try:
            with _mapped_errors():
                self._minio.put_object(
                    bucket,
                    key,
                    cast("BinaryIO", stream),
                    length=-1,
                    part_size=_PART_BYTES,
                    content_type=content_type,
                    num_parallel_uploads=1,
                )
        except InputNotFound as error:
            raise _no_bucket(bucket) from error

    def create(self, bucket: str, key: str, content: bytes) -> bool:
        """Stores a small object unless there is one under its key. A storage without conditional writes overwrites it.

        Returns:
            False if there is one.

        Raises:
            StorageUnavailable: The storage does not answer or refuses.
        """
        return self._retrying(self._create, bucket, key, content)

    def _create(self, bucket: str, key: str, content: bytes) -> bool:
        # The client's own upload takes no condition.
        with _mapped_errors():
            url = self._minio.presigned_put_object(bucket, key, expires=_URL_LIFETIME)
            status = self._pool.request("PUT", url, body=content, headers={"If-None-Match": "*"}).status
        if status == _NOT_IMPLEMENTED:
            with _mapped_errors():
                self._minio.put_object(bucket, key, BytesIO(content), len(content))
            return True
        if status == _NO_BUCKET:
            raise _no_bucket(bucket)
        if status == _CONFLICT:
            raise StorageUnavailable("another request stores the same object at this moment")
        if status not in {_OK, _EXISTS}:
            raise _refusal(None, status)
        return status == _OK

    def store_folder(self, bucket: str, prefix: str, sources: Sequence[Path], *, content_type: str) -> None:
        """Uploads files to keys with the names of `numbered_name`, which do not contain the files' names.

        Args:
            bucket: The bucket.
            prefix: The prefix, with its final slash.
            sources: The files.
            content_type: The content type of every file.

        Raises:
            StorageUnavailable: The storage does not answer or refuses.
        """
        _transfer_all(
            lambda number, path: self.store(
                bucket, prefix + numbered_name(number, path.name), path, content_type=content_type
            ),
            sources,
        )

    def _store(self, bucket: str, key: str, source: Path, content_type: str) -> None:
        try:
            with _mapped_errors():
                self._minio.fput_object(bucket, key, str(source), content_type=content_type)
        except InputNotFound as error:
            raise _no_bucket(bucket) from error

    def remove(self, bucket: str, key: str) -> None:
        """Removes an object, if it exists.

        Raises:
            StorageUnavailable: The storage does not answer or refuses.
        """
        with suppress(InputNotFound), _mapped_errors():
            self._minio.remove_object(bucket, key)

    def try_out(self, bucket: str, key: str) -> datetime | None:
        """Writes a small object and reads it back.

        Returns:
            The time of the storage's clock; None where it does not tell.

        Raises:
            StorageUnavailable: The storage does not answer or refuses, or returns another content.
        """
        content = token_bytes(64)
        try:
            with _mapped_errors():
                self._minio.put_object(bucket, key, BytesIO(content), len(content))
                with self._opened(bucket, key) as response:
                    read = response.read()
        except InputNotFound as error:
            raise _no_bucket(bucket) from error
        if read != content:
            raise StorageUnavailable("the object storage returns another content than was stored")
        date = response.headers.get("Date")
        return None if date is None else parsedate_to_datetime(date)

    def close(self) -> None:
        """Closes the connections."""
        self._pool.clear()

    def exists(self, bucket: str, key: str) -> bool:
        """Returns True if the object exists."""
        try:
            self.size(bucket, key)
        except InputNotFound:
            return False
        return True

    def size(self, bucket: str, key: str) -> int:
        """Returns the size of an object in bytes.

        Raises:
            InputNotFound: The object does not exist.
            StorageUnavailable: The storage does not answer or refuses.
        """
        return self._retrying(self._size, bucket, key)

    def _size(self, bucket: str, key: str) -> int:
        with _mapped_errors():
            return self._minio.stat_object(bucket, key).size or 0

    def checksum(self, bucket: str, key: str) -> Checksum:
        """Reads an object and returns the checksum of its content.

        Raises:
            InputNotFound: The object does not exist.
            StorageUnavailable: The storage does not answer or refuses.
        """
        return self._retrying(self._checksum, bucket, key)

    def _checksum(self, bucket: str, key: str) -> Checksum:
        with _mapped_errors():
            # The client does not understand how rclone's server answers a GET of a missing object.
            self._minio.stat_object(bucket, key)
            with self._opened(bucket, key) as response:
                return Checksum.of(response)

    def list_objects(self, bucket: str, prefix: str) -> list[StoredObject]:
        """Lists the objects under a prefix, at most `MAX_FILES`.

        Raises:
            StorageRefused: There are more.
            StorageUnavailable: The bucket does not exist, or the storage does not answer or refuses.
        """
        try:
            return self._retrying(self._list_objects, bucket, prefix)
        except InputNotFound as error:
            raise _no_bucket(bucket) from error

    def _list_objects(self, bucket: str, prefix: str) -> list[StoredObject]:
        with _mapped_errors():
            listed = self._minio.list_objects(bucket, prefix, recursive=True)
            found = [
                StoredObject(str(each.object_name), each.size or 0, (each.etag, each.last_modified))
                for each in islice(listed, MAX_FILES + 1)
                if not each.is_dir
            ]
        if len(found) > MAX_FILES:
            raise StorageRefused(f"the prefix holds more than {MAX_FILES} objects")
        return found

    def list_keys(self, bucket: str) -> Iterator[str]:
        """The keys of all objects of a bucket.

        Raises:
            StorageUnavailable: The storage does not answer or refuses.
        """
        last = None
        while page := self._retrying(self._keys_after, bucket, last):
            yield from page
            last = page[-1]

    def _keys_after(self, bucket: str, last: str | None) -> list[str]:
        with _mapped_errors():
            found = self._minio.list_objects(bucket, recursive=True, start_after=last)
            return [str(each.object_name) for each in islice(found, _KEYS_AT_ONCE)]


def _no_bucket(bucket: str) -> StorageUnavailable:
    return StorageUnavailable(f"there is no bucket {bucket}: run `inference-service migrate`")


def _transfer_all(transfer: Callable[[int, Item], None], items: Sequence[Item]) -> None:
    """Runs a transfer for each item, a few at a time. The first error cancels those that have not started."""
    with ThreadPoolExecutor(_CONCURRENT_TRANSFERS, "transfers") as pool:
        pending = [pool.submit(transfer, number, item) for number, item in enumerate(items)]
        try:
            for done in as_completed(pending):
                done.result()
        finally:
            for waiting in pending:
                waiting.cancel()


def is_outage(error: BaseException) -> bool:
    """Returns True if the storage does not answer, so that the same request may soon succeed."""
    return isinstance(error, StorageUnavailable) and not isinstance(error, StorageRefused)


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        # The error's own text quotes the key, which may identify a patient.
        cause = RuntimeError(f"{error.code} in answer to request {error.request_id}")
        if error.code in _NOT_FOUND:
            raise InputNotFound("there is no object at the bucket and key of the request") from cause
        raise _refusal(error.code, error.response.status) from cause
    except ServerError as error:
        raise _refusal(None, error.status_code) from redacted(error)
    except InvalidResponseError as error:
        # It has no public attribute for the status.
        raise _refusal(None, error._code) from redacted(error)
    except (MinioException, HTTPError) as error:
        raise StorageUnavailable(
            "the object storage does not answer: check MINIO_ENDPOINT, MINIO_SECURE and the network"
        ) from (redacted(error) if isinstance(error, MinioException) else error)


def _refusal(code: str | None, status: int) -> StorageUnavailable:
    """Returns the error for an answer that is not success; `code` is None if the answer is not S3's."""
    refused = status in _REFUSED_BY_A_PROXY if code is None else status < _SERVER_ERROR and status not in _PASSING
    return (StorageRefused if refused else StorageUnavailable)(refusal(code, status))
