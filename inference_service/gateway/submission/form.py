"""Reads a form of `multipart/form-data` part by part as it arrives: nothing of a file is kept."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TypeAlias

import anyio
from fastapi import Request
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from inference_service.core.errors import BadRequest
from inference_service.core.files import MAX_FILES
from inference_service.gateway.problems import HttpCode, Refusal

# Fields beside the files.
_MAX_FIELDS = 16
_MAX_HEADERS = 8
_MAX_HEADER_BYTES = 4096
# A client that sends less in so long a wait is gone, or holds a connection for its own sake.
_SILENCE_LIMIT_S = 60.0
_PROGRESS_BYTES = 64 * 1024
_PIECE_BYTES = 2**20
# The head of a part, some of its content, or its end.
_Event: TypeAlias = "MultipartSegment | bytes | None"


class FormPart:
    """One part of a form: a field or a file.

    Attributes:
        name: The name of the field.
        file_name: The name that the client gave the file; it is text of a stranger.
    """

    def __init__(self, segment: MultipartSegment, events: AsyncIterator[_Event]) -> None:
        self.name = str(segment.name)
        self.file_name = segment.filename or ""
        self._events = events

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yields the content in pieces of about 1 MiB; raises the errors of `read_form`."""
        piece = bytearray()
        while (event := await anext(self._events, None)) is not None:
            if isinstance(event, MultipartSegment):
                raise TypeError("a part of a form begins in another one")
            piece += event
            if len(piece) >= _PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)

    async def content(self, *, max_bytes: int) -> bytes:
        """Returns the content of a field.

        Raises:
            Refusal: It is longer than `max_bytes`.
        """
        content = bytearray()
        async for piece in self.pieces():
            content += piece
            if len(content) > max_bytes:
                raise Refusal(HttpCode.BODY_TOO_LARGE, f"a field of the form may have at most {max_bytes} bytes")
        return bytes(content)


async def read_form(request: Request, *, max_bytes: int) -> AsyncIterator[FormPart]:
    """Yields the parts of the request's form, each to be read to its end before the next one.

    Raises:
        Refusal: The body is longer than `max_bytes`, has too many parts or too long headers, or arrives too slowly.
        BadRequest: The body is not a form.
    """
    _, options = parse_options_header(request.headers.get("Content-Type", ""))
    boundary = options.get("boundary")
    if not boundary:
        raise BadRequest("expected a boundary in the Content-Type of the form")
    async with aclosing(_events(request, boundary, max_bytes)) as events:
        async for event in events:
            if isinstance(event, MultipartSegment):
                yield FormPart(event, events)


async def _events(request: Request, boundary: str, max_bytes: int) -> AsyncGenerator[_Event]:
    try:
        parser = PushMultipartParser(
            boundary,
            max_header_size=_MAX_HEADER_BYTES,
            max_header_count=_MAX_HEADERS,
            max_segment_count=MAX_FILES + _MAX_FIELDS,
            strict=True,
        )
        with parser:
            async for chunk in read_body(request, max_bytes=max_bytes):
                for event in parser.parse(chunk):
                    yield event
    except ParserLimitReached:
        raise Refusal(HttpCode.BODY_TOO_LARGE, "the form has too many parts, or too long headers") from None
    except MultipartError:
        raise BadRequest("the body is not a complete form of multipart/form-data") from None


async def read_body(request: Request, *, max_bytes: int) -> AsyncIterator[bytes]:
    """Yields the body of a request as it arrives.

    Raises:
        Refusal: It is longer than `max_bytes`, or arrives too slowly.
    """
    too_large = Refusal(HttpCode.BODY_TOO_LARGE, f"the body may have at most {max_bytes} bytes")
    stated = request.headers.get("Content-Length", "0")
    if stated.isdecimal() and int(stated) > max_bytes:
        raise too_large
    size = 0
    stream = request.stream()
    waited_s = 0.0
    since_wait = 0
    while True:
        began = time.monotonic()
        try:
            with anyio.fail_after(_SILENCE_LIMIT_S - waited_s):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise Refusal(
                HttpCode.TOO_SLOW, f"the body has not gone on by {_PROGRESS_BYTES} bytes in {_SILENCE_LIMIT_S:g} s"
            ) from None
        if chunk is None:
            return
        waited_s += time.monotonic() - began
        size += len(chunk)
        since_wait += len(chunk)
        if since_wait >= _PROGRESS_BYTES:
            waited_s = 0.0
            since_wait = 0
        if size > max_bytes:
            raise too_large
        if chunk:
            yield chunk
