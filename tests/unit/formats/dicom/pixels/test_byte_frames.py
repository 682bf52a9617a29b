"""Encapsulated native frames, plain and deflated."""

import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_encoders import DEFLATED_FRAMES, UNCOMPRESSED_FRAMES, deflated, set_codestream
from dicom_files import phantom, regular_stack, set_stored_values, write_series
from pydicom.dataset import Dataset

from inference_service.core.errors import InputCorrupt, UnsupportedFormat
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]
SHAPE = (31, 37, 3)


def write(folder: Path, syntax: str, content: bytes, *, dtype: str = "u1", allocated: int | None = None) -> Path:
    """One series whose slices all have this frame."""

    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, np.zeros(SHAPE[1::-1], dtype), bits=8 * np.dtype(dtype).itemsize)
        dataset.RescaleIntercept = 0
        if allocated is not None:
            dataset.BitsAllocated = allocated
            dataset.BitsStored = allocated
            dataset.HighBit = allocated - 1

    for path in write_series(folder, regular_stack(phantom(SHAPE)), change=change):
        set_codestream(path, syntax, content)
    return folder


FRAME = np.arange(SHAPE[0] * SHAPE[1], dtype=np.uint8).reshape(SHAPE[1::-1])
DEFLATED = deflated(FRAME, 8)


@pytest.mark.parametrize("syntax", [UNCOMPRESSED_FRAMES, DEFLATED_FRAMES])
@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_a_frame_of_an_odd_number_of_bytes_is_read(tmp_path: Path, read: Read, syntax: str, padding: bytes) -> None:
    content = FRAME.tobytes() + padding
    content = content if syntax == UNCOMPRESSED_FRAMES else zlib.compress(content, wbits=-zlib.MAX_WBITS)
    scan = read(write(tmp_path / "in", syntax, content))
    np.testing.assert_array_equal(scan.volume.voxels[:, :, 1].T, FRAME)


@pytest.mark.parametrize(
    ("syntax", "content"),
    [
        (UNCOMPRESSED_FRAMES, FRAME.tobytes()[:-1]),
        (UNCOMPRESSED_FRAMES, FRAME.tobytes() * 2),
        (DEFLATED_FRAMES, deflated(FRAME[:-1], 8)),
        (DEFLATED_FRAMES, deflated(np.tile(FRAME, (2, 1)), 8)),
        (DEFLATED_FRAMES, DEFLATED[: len(DEFLATED) // 2]),
        (DEFLATED_FRAMES, FRAME.tobytes()),
        (DEFLATED_FRAMES, b"\0\0"),
    ],
)
def test_a_frame_of_another_length_is_refused(tmp_path: Path, read: Read, syntax: str, content: bytes) -> None:
    with pytest.raises(InputCorrupt):
        read(write(tmp_path / "in", syntax, content))


def test_a_frame_is_inflated_no_further_than_the_header_states(tmp_path: Path, read: Read) -> None:
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(deflate.compress(bytes(2**20)) for _ in range(256)) + deflate.flush()
    folder = write(tmp_path / "in", DEFLATED_FRAMES, bomb)
    tracemalloc.start()
    try:
        with pytest.raises(InputCorrupt, match="1147 bytes by the header, but its pixel data have more"):
            read(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("syntax", [UNCOMPRESSED_FRAMES, DEFLATED_FRAMES])
def test_packed_bits_are_refused(tmp_path: Path, read: Read, syntax: str) -> None:
    with pytest.raises(UnsupportedFormat, match="BitsAllocated is 12"):
        read(write(tmp_path / "in", syntax, bytes(2000), dtype="u2", allocated=12))
