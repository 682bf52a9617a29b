"""Positions of frames in single-frame and multi-frame instances."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    affine_of,
    oblique_rotation,
    phantom,
    regular_stack,
    with_attribute,
    write_enhanced,
    write_series,
)

from inference_service.core.errors import (
    InputCorrupt,
)
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_multi_frame_instance_is_a_series(tmp_path: Path, read: Read, modality: str, shared: bool) -> None:
    stack = regular_stack(row=oblique_rotation()[:, 0], column=oblique_rotation()[:, 1])
    scan = read(write_enhanced(tmp_path / "object", stack, modality=modality, shared=shared))
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels, strict=True)
    np.testing.assert_allclose(scan.volume.affine, affine_of(stack), atol=1e-9)
    assert scan.modality == modality
    assert sorted(slice_.frame.index for slice_ in scan.slices) == list(range(6))


def test_the_thickness_of_a_single_frame_is_read_from_its_functional_group(tmp_path: Path, read: Read) -> None:
    path = write_enhanced(tmp_path / "in", regular_stack(phantom()[:, :, :1]))
    assert read(path).volume.spacing_mm[2] == 7


@pytest.mark.parametrize(("name", "value"), [("RescaleSlope", "1e39"), ("RescaleIntercept", "-1e38")])
def test_a_rescaling_beyond_float32_is_refused(tmp_path: Path, read: Read, name: str, value: str) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute(name, value, only=2))
    with pytest.raises(InputCorrupt, match="rescale slope"):
        read(tmp_path / "in")


@pytest.mark.parametrize("thickness", [[3, 3], "nan", ""])
def test_an_invalid_slice_thickness_is_ignored(tmp_path: Path, read: Read, thickness: object) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("SliceThickness", thickness))
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels, regular_stack().voxels)
