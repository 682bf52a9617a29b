from collections.abc import Callable, Sequence
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from inference_service.imaging.geometry import Volume, orientation, reorientation, spacing_mm, voxel_volume_ml

ORIENTATIONS = ["".join(codes) for axes in permutations(("LR", "PA", "IS")) for codes in product(*axes)]
# Below this angle, every rule chooses the same world axis for each array axis.
CLEAR_DEGREES = 44


@st.composite
def affines(draw: st.DrawFn) -> NDArray[np.float64]:
    """Rotated, anisotropic grids of any axis order and direction."""
    directions = np.zeros((3, 3))
    for axis, (world_axis, sign) in enumerate(axcodes2ornt(draw(st.sampled_from(ORIENTATIONS)))):
        directions[int(world_axis), axis] = sign
    towards = np.array(draw(st.tuples(*[st.integers(-9, 9)] * 3).filter(any)), dtype=float)
    angle = np.radians(draw(st.floats(-CLEAR_DEGREES, CLEAR_DEGREES)))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(angle * towards / np.linalg.norm(towards)).as_matrix() @ directions
    affine[:3, :3] *= draw(st.tuples(*[st.floats(0.2, 8)] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine


@given(affines())
def test_oblique_grids_are_read_as_nibabel_reads_them(affine: NDArray[np.float64]) -> None:
    assert orientation(affine) == "".join(nibabel.aff2axcodes(affine))
    assert spacing_mm(affine) == pytest.approx(voxel_sizes(affine))
    assert voxel_volume_ml(affine) == pytest.approx(np.prod(voxel_sizes(affine)) / 1000)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_an_oblique_grid_has_the_orientation_of_its_nearest_axes(
    codes: str, oblique_affine: Callable[[str, Sequence[float]], NDArray[np.float64]]
) -> None:
    assert orientation(oblique_affine(codes, (0.5, 2.0, 3.0))) == codes


def test_each_world_axis_is_given_once_where_two_array_axes_lean_to_the_same() -> None:
    leaning = np.eye(4)
    leaning[:3, :3] = np.array([[0.75, 0.66, 0], [0.8, -0.6, 0], [0, 0, 1]]).T
    for spacing in ((1, 1, 1), (5, 1, 1), (1, 5, 1)):
        assert orientation(leaning @ np.diag([*spacing, 1.0])) == "ARS"


@pytest.mark.parametrize("source", ORIENTATIONS)
def test_reorientation_is_nibabels_and_moves_no_data(source: str) -> None:
    array = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    for target in ORIENTATIONS:
        change = reorientation(source, target)
        view = change.apply(array)
        expected = apply_orientation(array, ornt_transform(axcodes2ornt(source), axcodes2ornt(target)))
        assert np.array_equal(view, expected)
        assert np.shares_memory(view, array)
        assert change.apply_triple((2, 3, 5)) == expected.shape
        assert np.array_equal(reorientation(target, source).apply(view), array)


def test_writing_to_a_view_writes_to_the_array() -> None:
    array = np.zeros((2, 3, 5), dtype=np.uint8)
    reorientation("LPS", "SAL").apply(array)[4, 0, 1] = 7
    assert np.argwhere(array).tolist() == [[1, 2, 4]]


def test_shear_lengthens_the_spacing_but_not_the_volume() -> None:
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[1, 2] = 3.0
    assert spacing_mm(affine) == pytest.approx((2, 3, 5))
    assert voxel_volume_ml(affine) == pytest.approx(0.024)


def test_a_volume_has_the_geometry_of_its_affine() -> None:
    volume = Volume(np.zeros((2, 3, 5), dtype=np.int16), np.diag([-2.0, 0.5, 3.0, 1.0]))
    assert volume.shape == (2, 3, 5)
    assert volume.spacing_mm == (2.0, 0.5, 3.0)
    assert volume.orientation == "LAS"
    assert volume.voxel_volume_ml == pytest.approx(0.003)
