"""Opens DICOM files for pydicom, which reads as many bytes as an element states, whatever the file holds.

Python allocates the bytes of a read before it reads them: a damaged length took 4 GiB.
"""

from io import BufferedReader, FileIO
from pathlib import Path

# Smaller reads are not worth the comparison with the file's size.
_SMALL_READ_BYTES = 2**16


class BoundedFile(BufferedReader):
    """A file whose reads allocate no more than it holds.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path))
        self._size_bytes = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads at most `size` bytes, or all that is left."""
        if size is not None and size > _SMALL_READ_BYTES:
            size = min(size, max(0, self._size_bytes - self.tell()))
        return super().read(size)
