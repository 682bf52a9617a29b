"""Resampling to another grid, held against SimpleITK."""

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from inference_service.core.threads import ThreadPool
from inference_service.imaging.geometry import LPS_TO_RAS, Volume
from inference_service.imaging.regridding import regrid, same_grid

Affine = NDArray[np.float64]
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def grid(
    spacing: tuple[float, float, float] = (1.0, 1.5, 2.5),
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Affine:
    """An affine; the angles are in degrees about x, y and z."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def noise(shape: tuple[int, int, int], dtype: str = "f4") -> NDArray[np.generic]:
    values = np.random.default_rng(0).integers(5, 100, size=shape)
    return np.asfortranarray(values.astype(dtype))


def floats(volume: Volume) -> NDArray[np.float64]:
    return volume.voxels.astype(np.float64)


def image(volume: Volume) -> SimpleITK.Image:
    made = SimpleITK.GetImageFromArray(volume.voxels.T)
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    made.SetSpacing(spacing.tolist())
    made.SetDirection((LPS_TO_RAS @ volume.affine[:3, :3] / spacing).ravel().tolist())
    made.SetOrigin((LPS_TO_RAS @ volume.affine[:3, 3]).tolist())
    return made


def expected(volume: Volume, affine: Affine, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """SimpleITK's linear interpolation, which ends half a voxel beyond the outermost centres too."""
    target = image(Volume(np.zeros(shape, dtype=np.float32), affine))
    fill = float(volume.voxels.min())
    resampled = SimpleITK.Resample(
        image(volume), target, SimpleITK.Transform(), SimpleITK.sitkLinear, fill, SimpleITK.sitkFloat32
    )
    values: NDArray[np.float32] = SimpleITK.GetArrayFromImage(resampled).T
    return values


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_oblique_grid_gets_the_values_that_simpleitk_gives_it(dtype: str) -> None:
    volume = Volume(noise((13, 11, 9), dtype), grid(angles=(20, -10, 5), origin=(-30, 4, 7)))
    affine = grid((0.8, 1.1, 1.7), (-5, 15, 40), (-33, 2, 9))
    moved, covered = regrid(volume, affine, (17, 12, 14))
    np.testing.assert_allclose(floats(moved), expected(volume, affine, (17, 12, 14)), atol=1e-3)
    assert moved.voxels.dtype == np.float32
    np.testing.assert_array_equal(moved.affine, affine)
    assert 0.2 < covered < 0.8
    assert covered >= np.mean(moved.voxels > volume.voxels.min())


angles = st.tuples(*[st.floats(-180, 180)] * 3)
places = st.tuples(*[st.floats(-20, 20)] * 3)
spacings = st.tuples(*[st.floats(0.3, 4)] * 3)
sizes = st.tuples(*[st.integers(2, 7)] * 3)


@given(sizes, spacings, angles, sizes, spacings, angles, places)
@settings(max_examples=150, deadline=None)
def test_any_two_grids_agree_with_simpleitk(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    turned: tuple[float, float, float],
    other_shape: tuple[int, int, int],
    other_spacing: tuple[float, float, float],
    other_turned: tuple[float, float, float],
    origin: tuple[float, float, float],
) -> None:
    volume = Volume(noise(shape), grid(spacing, turned))
    affine = grid(other_spacing, other_turned, origin)
    moved, covered = regrid(volume, affine, other_shape)
    inside = moved.voxels != volume.voxels.min()
    reference = expected(volume, affine, other_shape)
    # On the very edge of the extent, rounding decides.
    differ = ~np.isclose(floats(moved), reference, atol=1e-2)
    assert np.all(differ <= edge(volume, affine, other_shape))
    assert 0 <= covered <= 1
    assert covered >= inside.mean()


def edge(volume: Volume, affine: Affine, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Voxels of the other grid that lie on the edge of a volume, but for rounding."""
    indices = np.stack([*np.indices(shape), np.ones(shape)], axis=-1)
    source = (indices @ np.linalg.solve(volume.affine, affine).T)[..., :3]
    beyond = np.maximum(-0.5 - source, source - np.array(volume.shape) + 0.5)
    near: NDArray[np.bool_] = np.any(np.abs(beyond) < 1e-3, axis=-1)
    return near


def test_the_same_grid_gives_the_values_back() -> None:
    volume = Volume(noise((5, 6, 7), "i2"), grid(angles=(3, 4, 5)))
    moved, covered = regrid(volume, volume.affine, volume.shape)
    np.testing.assert_allclose(floats(moved), floats(volume), atol=1e-4)
    assert covered == 1


def test_a_finer_grid_with_the_same_edges_is_covered_completely() -> None:
    volume = Volume(noise((4, 4, 4)), grid((2.0, 2.0, 2.0)))
    moved, covered = regrid(volume, grid((1.0, 1.0, 1.0), origin=(-0.5, -0.5, -0.5)), (8, 8, 8))
    assert covered == 1
    np.testing.assert_allclose(floats(moved)[::7, ::7, ::7], floats(volume)[::3, ::3, ::3])


def test_flipped_and_swapped_axes_move_no_value() -> None:
    volume = Volume(noise((4, 5, 6)), np.eye(4))
    affine = np.array([[0, 0, -1, 3], [1, 0, 0, 0], [0, -1, 0, 5], [0, 0, 0, 1]], dtype=float)
    moved, covered = regrid(volume, affine, (5, 6, 4))
    np.testing.assert_allclose(floats(moved), floats(volume).transpose(1, 2, 0)[:, ::-1, ::-1], atol=1e-4)
    assert covered == 1


def test_a_sheared_grid_is_interpolated_where_its_voxels_lie() -> None:
    sheared = np.eye(4)
    sheared[1, 2] = 0.5
    # The values are those of y, which the other grid finds again.
    j, k = np.indices((4, 9, 5))[1:]
    volume = Volume((j + 0.5 * k).astype(np.float32), sheared)
    moved, _ = regrid(volume, np.eye(4), (4, 9, 5))
    np.testing.assert_allclose(floats(moved)[:, 3:8, :], np.indices((4, 9, 5))[1][:, 3:8, :], atol=1e-4)


def test_outside_lies_the_lowest_value() -> None:
    volume = Volume(np.full((3, 3, 3), -1000, dtype=np.int16), np.eye(4))
    volume.voxels[1, 1, 1] = 40
    moved, covered = regrid(volume, grid((1.0, 1.0, 1.0), origin=(50.0, 0.0, 0.0)), (3, 3, 3))
    assert covered == 0
    assert set(moved.voxels.ravel().tolist()) == {-1000.0}


def test_a_single_slice_reaches_half_its_thickness() -> None:
    volume = Volume(noise((3, 3, 1)), grid((1.0, 1.0, 4.0)))
    moved, covered = regrid(volume, grid((1.0, 1.0, 1.0), origin=(0, 0, -3)), (3, 3, 7))
    assert covered == pytest.approx(5 / 7)
    np.testing.assert_array_equal(moved.voxels[:, :, 1], volume.voxels[:, :, 0])


def test_threads_change_nothing() -> None:
    volume = Volume(noise((13, 11, 9)), grid(angles=(20, -10, 5)))
    affine = grid((0.8, 1.1, 1.7), (-5, 15, 40))
    alone, covered = regrid(volume, affine, (10, 11, 12))
    with ThreadPool(3) as threads:
        shared, covered_by_all = regrid(volume, affine, (10, 11, 12), threads=threads)
    np.testing.assert_array_equal(alone.voxels, shared.voxels)
    assert covered == covered_by_all


@pytest.mark.parametrize(
    ("change", "same"),
    [((0.0, 0.0, 0.0), True), ((5e-3, 0.0, 0.0), True), ((0.0, 0.0, 0.05), False), ((0.0, 20.0, 0.0), False)],
)
def test_grids_are_the_same_but_for_rounding(change: tuple[float, float, float], same: bool) -> None:
    first = Volume(noise((5, 6, 7)), grid((1.0, 1.0, 1.0), (10, 20, 30)))
    second = Volume(noise((5, 6, 7), "i2"), first.affine.copy())
    second.affine[:3, 3] += change
    assert same_grid(first, second) is same


def test_grids_of_other_shape_or_spacing_are_not_the_same() -> None:
    first = Volume(noise((5, 6, 7)), np.eye(4))
    assert not same_grid(first, Volume(noise((5, 6, 8)), np.eye(4)))
    # The first voxels coincide, the last ones do not.
    assert not same_grid(first, Volume(noise((5, 6, 7)), grid((1.0, 1.0, 1.01))))
