"""The files into which the archives of one input are unpacked, within the limits on all of them together."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from inference_service.core.errors import InputTooLarge
from inference_service.core.files import MAX_FILES, numbered_name

_CHUNK_BYTES = 2**20


class UnpackedFiles:
    """Writes files into one folder, with the names of `numbered_name`: names in an archive are not used otherwise.

    Args:
        folder: Created for the first file.
        max_bytes: Limit on all files together, also those that are unpacked further.

    Attributes:
        max_bytes: That limit.
        links: Number of symbolic links in the archives, which are not followed.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.links = 0
        self._folder = folder
        self._remaining_bytes = max_bytes
        self._count = 0

    def add(self, content: Iterable[bytes], name: str = "") -> Path:
        """Writes a file.

        Args:
            content: Its content, piece by piece.
            name: Its name in the archive.

        Raises:
            InputTooLarge: The files together exceed the limits.
        """
        if self._count == MAX_FILES:
            raise InputTooLarge(
                f"the input's archives hold more than {MAX_FILES} files, which is the most that this service takes"
            )
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / numbered_name(self._count, name)
        self._count += 1
        with path.open("xb") as file:
            for chunk in content:
                self._remaining_bytes -= len(chunk)
                if self._remaining_bytes < 0:
                    raise InputTooLarge(
                        f"the input unpacks to more than {self.max_bytes} bytes, which is the most that this service "
                        "takes"
                    )
                file.write(chunk)
        return path


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of a stream, piece by piece."""
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk
