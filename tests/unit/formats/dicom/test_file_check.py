"""Limits on a DICOM file before it is parsed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    regular_stack,
    write_series,
)
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
)

from inference_service.core.errors import (
    InputTooLarge,
)
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

Read = Callable[..., Scan]


def test_a_deflate_bomb_is_refused(tmp_path: Path) -> None:
    voxels = np.zeros((600, 600, 1), np.int16)
    write_series(tmp_path / "in", regular_stack(voxels), syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(InputTooLarge, match="inflates to more than the 100000 bytes"):
        read_scan(tmp_path / "in", tmp_path, ReadLimits(10**6, 100_000))


def test_deflated_files_share_one_limit_and_require_memory(tmp_path: Path, read: Read) -> None:
    required: list[int] = []
    size = 2 * 60 * 50
    stack = regular_stack(np.full((60, 50, 6), -1000, np.int16))
    write_series(tmp_path / "in", stack, syntax=DeflatedExplicitVRLittleEndian)
    assert read(tmp_path / "in", max_bytes=7 * size, require_memory=required.append).volume.shape == (60, 50, 6)
    assert sum(2 * size < each < 3 * size for each in required) == 12
    with pytest.raises(InputTooLarge, match="inflates to more"):
        read(tmp_path / "in", max_bytes=6 * size)
