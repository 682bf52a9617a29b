"""Objects of jobs as HTTP answers: whole, in ranges, or not at all where the caller has them already."""

import re
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import BinaryIO
from zipfile import ZIP_STORED, ZipFile

from anyio import CancelScope, CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from inference_service.core.files import numbered_name
from inference_service.gateway.problems import HttpCode, Refusal
from inference_service.jobs.storage.object_storage import Storage

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_MEDIA_TYPES = {
    ".json": "application/json",
    ".png": "image/png",
    ".dcm": "application/dicom",
    ".gz": "application/gzip",
    ".zip": "application/zip",
}
_ANY = "application/octet-stream"


@dataclass(frozen=True)
class Download:
    """An object to download.

    Attributes:
        bucket: Its bucket.
        key: Its key.
        size_bytes: Its size.
        sha256: The SHA-256 of its content, by which a caller knows it again; None where it is not known.
        file_name: The name under which a browser stores it.
    """

    bucket: str
    key: str
    size_bytes: int
    sha256: str | None
    file_name: str

    @property
    def media_type(self) -> str:
        """The media type, by the ending of the name."""
        return _MEDIA_TYPES.get(PurePosixPath(self.file_name).suffix, _ANY)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every answer with it."""
        headers = {
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",
            "Content-Disposition": f'attachment; filename="{self.file_name}"',
        }
        return headers if self.sha256 is None else {**headers, "ETag": f'"{self.sha256}"'}


class ObjectResponse(StreamingResponse):
    """The content of objects, which is read by few threads, and no further once the caller is gone.

    Args:
        pieces: The content. Its first piece is read at once, so that a missing object is an answer of its own.
        threads: Limits the threads that wait for the storage.
        status: The status of the answer.
        headers: Its headers.
        media_type: Its media type.
    """

    def __init__(
        self,
        pieces: Generator[bytes],
        threads: CapacityLimiter,
        status: HTTPStatus,
        headers: Mapping[str, str],
        *,
        media_type: str,
    ) -> None:
        self._pieces = pieces
        self._threads = threads
        super().__init__(self._sent(next(pieces, b"")), status, headers, media_type=media_type)

    async def _sent(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        while (piece := await run_sync(next, self._pieces, None, limiter=self._threads)) is not None:
            yield piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer, and closes the connection to the storage."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                await run_sync(self._pieces.close)


def answer(storage: Storage, download: Download, request: Request, threads: CapacityLimiter) -> Response:
    """Returns the answer to a request for an object.

    Raises:
        Refusal: The requested range lies outside the object.
        InputNotFound: The object does not exist.
        StorageUnavailable: The storage does not answer or refuses.
    """
    headers = download.headers
    tag = headers.get("ETag")
    if tag is not None and {tag, "*"} & _tags(request.headers.get("If-None-Match", "")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    status = HTTPStatus.OK
    first, length = 0, download.size_bytes
    stated = request.headers.get("Range") if request.headers.get("If-Range", tag) == tag else None
    if stated is not None and (found := _range(stated, download.size_bytes)) is not None:
        first, length = found
        status = HTTPStatus.PARTIAL_CONTENT
        headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{download.size_bytes}"
    headers["Content-Length"] = str(length)
    if request.method == "HEAD" or length == 0:
        return Response(status_code=status, headers=headers, media_type=download.media_type)
    pieces = storage.stream(download.bucket, download.key, offset=first, length=length)
    return ObjectResponse(pieces, threads, status, headers, media_type=download.media_type)


def answer_zip(
    storage: Storage, bucket: str, keys: Sequence[str], request: Request, threads: CapacityLimiter
) -> Response:
    """Returns several objects as one zip, which is made while it is sent; no key becomes a path in it."""
    headers = {"Content-Disposition": 'attachment; filename="scan.zip"', "Cache-Control": "private, no-cache"}
    media_type = _MEDIA_TYPES[".zip"]
    if request.method == "HEAD":
        return Response(headers=headers, media_type=media_type)
    return ObjectResponse(_zipped(storage, bucket, keys), threads, HTTPStatus.OK, headers, media_type=media_type)


def _tags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Returns first byte and length of a range; None for a header that a server may pass over.

    >>> _range("bytes=10-19", 100), _range("bytes=-10", 100), _range("bytes=90-", 100), _range("bytes=1-2,5-6", 100)
    ((10, 10), (90, 10), (90, 10), None)
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        length = min(int(found[2]), size)
        first = size - length
    else:
        first = int(found[1])
        last = int(found[2]) if found[2] else size - 1
        if last < first and found[2]:
            return None
        length = min(last, size - 1) - first + 1
    if length <= 0:
        raise Refusal(
            HttpCode.RANGE_NOT_SATISFIABLE, f"the object has {size} bytes", {"Content-Range": f"bytes */{size}"}
        )
    return first, length


class _Drain:
    """A file for writing whose content is taken out again at once."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, content: bytes) -> int:
        self._written += content
        return len(content)

    def flush(self) -> None:
        """Does nothing."""

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


def _zipped(storage: Storage, bucket: str, keys: Sequence[str]) -> Generator[bytes]:
    drain = _Drain()
    target: BinaryIO = drain  # type: ignore[assignment]
    with ZipFile(target, "w", ZIP_STORED) as archive:
        for number, key in enumerate(keys):
            with (
                closing(storage.stream(bucket, key)) as pieces,
                archive.open(numbered_name(number, key), "w", force_zip64=True) as member,
            ):
                for piece in pieces:
                    member.write(piece)
                    yield drain.take()
    yield drain.take()
