from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from inference_service.imaging.geometry import Volume
from inference_service.segmentation.preview.planes import (
    AXIAL,
    CORONAL,
    DISPLAY_AXES,
    SAGITTAL,
    VIEWS,
    PlaneExtractor,
    evenly_spaced_planes,
    middle_plane,
)

ORIENTATIONS = ["".join(codes) for axes in permutations(("LR", "PA", "IS")) for codes in product(*axes)]
SHAPE = (3, 4, 5)

profiles = st.lists(st.integers(0, 9), min_size=1, max_size=40).map(lambda counts: np.array(counts, dtype=np.int64))


def seen_volume() -> Volume:
    """A volume of distinct voxels, along the axes of the display."""
    affine = np.array([[-0.8, 0, 0, 31], [0, -1.5, 0, -7], [0, 0, -3, 55], [0, 0, 0, 1]])
    return Volume(np.arange(60, dtype=np.int16).reshape(SHAPE), affine)


def turned(volume: Volume, orientation: str) -> Volume:
    """The same volume in another axis order and direction, as nibabel reorients it."""
    change = ornt_transform(axcodes2ornt(volume.orientation), axcodes2ornt(orientation))
    order = np.argsort(change[:, 0])
    flips = tuple(slice(None, None, int(change[axis, 1])) for axis in order)
    return Volume(volume.voxels.transpose(order)[flips], volume.affine @ inv_ornt_aff(change, volume.shape))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_same_patient_gives_the_same_planes(orientation: str) -> None:
    volume = turned(seen_volume(), orientation)
    extractor = PlaneExtractor.of(volume)
    assert volume.orientation == orientation
    np.testing.assert_allclose(extractor.steps_mm, np.diag([-0.8, -1.5, -3]), atol=1e-12)
    assert extractor.tilt_degrees == 0
    voxels = seen_volume().voxels
    for k in range(5):
        np.testing.assert_array_equal(extractor.plane(volume.voxels, AXIAL, k), voxels[:, :, k].T)
    np.testing.assert_array_equal(extractor.plane(volume.voxels, CORONAL, 1), voxels[:, 1].T)
    np.testing.assert_array_equal(extractor.plane(volume.voxels, SAGITTAL, 2), voxels[2].T)
    counts = [np.arange(size, dtype=np.int64) for size in volume.shape]
    for view in VIEWS:
        flipped = extractor.reorientation.flipped[view.across]
        size = SHAPE[view.across]
        assert extractor.profile(counts, view).tolist() == list(range(size))[:: -1 if flipped else 1]
        assert extractor.position(view, 1) == PlaneExtractor.of(seen_volume()).position(view, 1)


def test_positions_are_world_coordinates() -> None:
    extractor = PlaneExtractor.of(seen_volume())
    assert [extractor.position(AXIAL, k) for k in (0, 4)] == ["H 55.0 mm", "H 43.0 mm"]
    assert [extractor.position(CORONAL, j) for j in (0, 2)] == ["P 7.0 mm", "P 10.0 mm"]
    assert extractor.position(SAGITTAL, 2) == "R 29.4 mm"
    assert PlaneExtractor.of(Volume(np.zeros(SHAPE), np.eye(4))).position(AXIAL, 4) == "H 0.0 mm"


def test_sides_are_radiological() -> None:
    assert [view.sides for view in VIEWS] == ["RLAP", "RLHF", "APHF"]
    assert DISPLAY_AXES == "LPI"


def test_sizes_are_millimetres() -> None:
    extractor = PlaneExtractor.of(turned(seen_volume(), "SAR"))
    assert [extractor.size_mm(view) for view in VIEWS] == [
        pytest.approx((2.4, 6)),
        pytest.approx((2.4, 15)),
        pytest.approx((6, 15)),
    ]


def test_planes_of_a_tilted_stack_are_sheared() -> None:
    affine = np.diag([-1.0, -1, 3, 1])
    affine[1, 2] = 3 * np.tan(np.radians(20))  # further to the front with each slice to the head
    extractor = PlaneExtractor.of(Volume(np.zeros((10, 10, 8)), affine))
    assert [extractor.shear(view) for view in VIEWS] == [0, 0, pytest.approx(np.tan(np.radians(20)))]
    assert extractor.size_mm(SAGITTAL) == pytest.approx((10, 24))
    assert extractor.tilt_degrees == pytest.approx(20)


@given(profiles)
def test_the_middle_plane_contains_labelled_voxels(profile: NDArray[np.int64]) -> None:
    assert profile[middle_plane(profile)] >= profile.max() / 2


def test_the_middle_plane_of_two_regions_lies_in_one_of_them() -> None:
    assert middle_plane(np.array([0, 1, 4, 5, 1, 0, 0, 0, 1, 4, 4, 1])) in (3, 9)
    assert middle_plane(np.zeros(9, dtype=np.int64)) == 4


@given(profiles, st.integers(1, 10))
def test_evenly_spaced_planes_ascend_within_the_volume(profile: NDArray[np.int64], count: int) -> None:
    planes = evenly_spaced_planes(profile, count)
    assert planes == sorted(set(planes))
    assert planes[0] >= 0
    assert planes[-1] < len(profile)
    assert len(planes) == min(count, len(profile))
    held = np.flatnonzero(profile)
    if held.size >= count:
        assert held[0] <= planes[0]
        assert planes[-1] <= held[-1]
