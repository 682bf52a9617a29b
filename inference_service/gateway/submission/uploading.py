"""Stores the files of a form in the input bucket while they arrive."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from anyio.to_thread import run_sync

from inference_service.core.errors import BadRequest, InputTooLarge, ServiceError, StorageUnavailable
from inference_service.core.files import MAX_CHANNELS, MAX_FILES, numbered_name
from inference_service.gateway.submission.form import FormPart
from inference_service.jobs.gateway.uploads import Upload
from inference_service.jobs.storage.object_storage import Storage

MAX_UPLOADS = 8
"""Files that one process stores at a time; each takes a thread and about 30 MB."""
_MAX_UPLOADS_OF_NAME = 6
FILE_FIELD = "file"
"""Name of the parts of a form with the files of the only scan."""
CHANNEL_FIELD = "channel."
"""Start of the names of the parts with the files of one channel."""

_CONTENT_TYPE = "application/octet-stream"
_QUEUED_PIECES = 2


class BrokenUpload(Exception):
    """The sender of a file is gone before its end."""


class _Pieces:
    """The pieces of a file as a stream, to be read by a thread of the event loop.

    Args:
        pieces: The pieces; an empty one ends the file.
    """

    def __init__(self, pieces: MemoryObjectReceiveStream[bytes]) -> None:
        self._pieces = pieces
        self._left = b""
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """Returns the next bytes, at most `size`; none at the end.

        Raises:
            BrokenUpload: The sender is gone.
        """
        if not self._left and not self._ended:
            try:
                self._left = anyio.from_thread.run(self._pieces.receive)
            except BaseException as error:
                # A cancellation is no Exception, and the storage's client has to end the upload.
                raise BrokenUpload from error
            self._ended = not self._left
        found, self._left = self._left[:size], self._left[size:]
        return found


@dataclass(frozen=True)
class SlotsOfName:
    """The places for files that are stored at a time: of one name, and of all."""

    of_name: anyio.CapacityLimiter
    of_all: anyio.CapacityLimiter


class UploadSlots:
    """The places for files that one process stores at a time, of which no name takes all: a file may come slowly."""

    def __init__(self) -> None:
        self._all = anyio.CapacityLimiter(MAX_UPLOADS)
        self._of_name: dict[str, anyio.CapacityLimiter] = {}

    def of(self, name: str) -> SlotsOfName:
        """The places for the files of a name."""
        limiter = self._of_name.setdefault(name, anyio.CapacityLimiter(_MAX_UPLOADS_OF_NAME))
        return SlotsOfName(limiter, self._all)


class Uploader:
    """Stores the files of one form.

    Args:
        storage: The object storage. It is asked once for each file: a stream is read once.
        upload: The recorded upload.
        max_bytes: Limit of all files together.
        slots: The places for files that are stored at a time.
        record: Called with all that has arrived, before it is stored; raises if it is too much for the sender.

    Attributes:
        size_bytes: What has arrived until now.
    """

    def __init__(
        self,
        storage: Storage,
        upload: Upload,
        *,
        max_bytes: int,
        slots: SlotsOfName,
        record: Callable[[int], None] | None,
    ) -> None:
        self.upload = upload
        self.size_bytes = 0
        self._storage = storage
        self._max_bytes = max_bytes
        self._slots = slots
        self._record = record
        self._keys: dict[str | None, list[str]] = {}

    @property
    def places(self) -> dict[str | None, str]:
        """The key of each channel's file, or the prefix of its files; those of the only scan under None."""
        return {name: keys[0] if len(keys) == 1 else _prefix(keys[0]) for name, keys in self._keys.items()}

    async def take(self, part: FormPart) -> None:
        """Stores a file. Its key has nothing of the file's name but the number of a channel.

        Raises:
            BadRequest: The form has files of the only scan and of channels.
            InputTooLarge: The files of the form are too many or too large.
            Refusal: The sender has uploaded too much.
            StorageUnavailable: The storage does not answer or refuses.
        """
        channel = None if part.name == FILE_FIELD else part.name.removeprefix(CHANNEL_FIELD)
        if self._keys and (None in self._keys) != (channel is None):
            raise BadRequest("the form has parts `file` and parts `channel.…`: expected one of both")
        count = sum(map(len, self._keys.values()))
        if count == MAX_FILES:
            raise InputTooLarge(f"the form holds more than {MAX_FILES} files")
        if len(self._keys) == MAX_CHANNELS and channel not in self._keys:
            raise BadRequest(f"the form has files of more than {MAX_CHANNELS} channels")
        keys = self._keys.setdefault(channel, [])
        folder = "" if channel is None else f"{list(self._keys).index(channel)}/"
        keys.append(f"{self.upload.prefix}{folder}{numbered_name(count, part.file_name)}")
        await self._store(keys[-1], part)

    async def _store(self, key: str, part: FormPart) -> None:
        sender, receiver = anyio.create_memory_object_stream[bytes](_QUEUED_PIECES)
        store = partial(
            self._storage.store_stream, self.upload.bucket, key, _Pieces(receiver), content_type=_CONTENT_TYPE
        )
        try:
            async with self._slots.of_name, anyio.create_task_group() as group:
                group.start_soon(partial(run_sync, store, limiter=self._slots.of_all))
                async with sender:
                    async for piece in self._counted(part):
                        await sender.send(piece)
                    await sender.send(b"")
        except BaseExceptionGroup as group_error:
            raise _cause(group_error) from group_error
        finally:
            receiver.close()

    async def _counted(self, part: FormPart) -> AsyncIterator[bytes]:
        async for piece in part.pieces():
            self.size_bytes += len(piece)
            if self.size_bytes > self._max_bytes:
                raise InputTooLarge(f"the files of the form have more than {self._max_bytes} bytes")
            if self._record is not None:
                await run_sync(self._record, self.size_bytes)
            yield piece


def _prefix(key: str) -> str:
    return key.rpartition("/")[0] + "/"


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a file: that of the storage, else that of the form, not that the other side was left."""
    errors = list(group.exceptions)
    for kind in (ServiceError, Exception):
        for error in errors:
            if isinstance(error, kind) and not isinstance(error, BrokenUpload | anyio.BrokenResourceError):
                return error
    return StorageUnavailable("the upload was broken off; send it again")
