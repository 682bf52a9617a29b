"""Objects of jobs as HTTP answers: whole, in ranges, or not at all where the caller has them already."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import BinaryIO
from zipfile import ZIP_STORED, ZipFile

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

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


def answer(storage: Storage, download: Download, request: Request) -> Response:
    """Returns the answer to a request for an object.

    Raises:
        Refusal: The requested range lies outside the object.
        InputNotFound: The object does not exist.
        StorageUnavailable: The storage does not answer or refuses.
    """
    headers = download.headers
    tag = headers.get("ETag")
    if tag is not None and tag in _tags(request.headers.get("If-None-Match", "")):
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
    return StreamingResponse(_begun(pieces), status, headers, media_type=download.media_type)


def answer_zip(storage: Storage, bucket: str, keys: list[str], file_name: str) -> Response:
    """Returns several objects as one zip, which is made while it is sent; their names are those of their keys."""
    headers = {"Content-Disposition": f'attachment; filename="{file_name}"', "Cache-Control": "private, no-cache"}
    pieces = _begun(_zipped(storage, bucket, keys))
    return StreamingResponse(pieces, headers=headers, media_type=_MEDIA_TYPES[".zip"])


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


def _begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Reads the first piece at once, so that a missing object is an answer of its own and no broken one."""
    first = next(pieces, b"")

    def rest() -> Iterator[bytes]:
        yield first
        yield from pieces

    return rest()


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


def _zipped(storage: Storage, bucket: str, keys: list[str]) -> Iterator[bytes]:
    drain = _Drain()
    target: BinaryIO = drain  # type: ignore[assignment]
    with ZipFile(target, "w", ZIP_STORED) as archive:
        for key in keys:
            with archive.open(PurePosixPath(key).name, "w", force_zip64=True) as member:
                for piece in storage.stream(bucket, key):
                    member.write(piece)
                    yield drain.take()
    yield drain.take()
