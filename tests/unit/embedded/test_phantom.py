import numpy as np
import pytest
from numpy.typing import NDArray

from inference_service.embedded.phantom import NOISE_HU, PADDING_HU, chest_phantom
from inference_service.imaging.geometry import Volume

SHAPE = (128, 120, 60)
SPACING_MM = (3.2, 3.4, 5.0)

# Usual CT numbers, and the least share of the volume that each tissue must have.
TISSUES = {
    "air": ((-1100, -940), 0.2),
    "lung": ((-940, -700), 0.05),
    "fat": ((-150, -50), 0.05),
    "soft": ((-25, 120), 0.05),
    "marrow": ((180, 320), 0.002),
    "cortex": ((500, 1000), 0.001),
}


@pytest.fixture(scope="module")
def chest() -> Volume:
    return chest_phantom(SHAPE, SPACING_MM)


def hu(chest: Volume) -> NDArray[np.int16]:
    return chest.voxels.astype(np.int16, copy=False)


def mean_world_mm(mask: NDArray[np.bool_], chest: Volume) -> NDArray[np.float64]:
    """The centroid of a mask in RAS+ mm, shape (3,)."""
    middle: NDArray[np.float64] = chest.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + chest.affine[:3, 3]
    return middle


def within(chest: Volume, low_hu: float, high_hu: float) -> NDArray[np.bool_]:
    return (hu(chest) > low_hu) & (hu(chest) < high_hu)


def box(chest: Volume, across: tuple[float, float], back: tuple[float, float]) -> NDArray[np.bool_]:
    """The voxels between shares of the width, from the right, and of the depth, from the front."""
    i, j = (np.arange(count) / count for count in chest.shape[:2])
    chosen: NDArray[np.bool_] = np.zeros(chest.shape, np.bool_)
    chosen[np.ix_((i >= across[0]) & (i < across[1]), (j >= back[0]) & (j < back[1]))] = True
    return chosen


def planes(mask: NDArray[np.bool_], start: float, stop: float) -> NDArray[np.bool_]:
    """The mask between two shares of the height, and False elsewhere."""
    kept = np.zeros_like(mask)
    between = slice(int(start * mask.shape[2]), int(stop * mask.shape[2]))
    kept[:, :, between] = mask[:, :, between]
    return kept


def test_geometry_resembles_a_scanners(chest: Volume) -> None:
    assert chest.shape == SHAPE
    assert chest.spacing_mm == pytest.approx(SPACING_MM)
    assert chest.orientation == "LPS"
    assert chest.voxels.dtype == np.int16


@pytest.mark.parametrize("tissue", TISSUES)
def test_tissue_is_present(chest: Volume, tissue: str) -> None:
    (low_hu, high_hu), least = TISSUES[tissue]
    assert within(chest, low_hu, high_hu).mean() > least


def test_all_tissues_survive_in_a_small_volume() -> None:
    small = chest_phantom((64, 60, 48), (6.4, 6.8, 6.25))
    shares = np.histogram(small.voxels, bins=[-4000, -1150, -940, -350, -25, 180, 2000])[0] / small.voxels.size
    assert (shares > 0.02).all()


def test_field_of_view_is_round_and_padded(chest: Volume) -> None:
    padding = hu(chest) == PADDING_HU
    assert padding[[0, 0, -1, -1], [0, -1, 0, -1]].all()
    assert padding.mean() == pytest.approx(1 - np.pi / 4, abs=0.02)
    assert (padding == padding[:, :, :1]).all()
    assert hu(chest)[~padding].min() > -1200
    assert hu(chest).max() < 1200


def test_heart_is_on_the_left_and_in_front(chest: Volume) -> None:
    body = planes(within(chest, -150, 2000), 0.35, 0.45)
    heart = body & box(chest, (0.3, 0.7), (0.3, 0.45))
    assert mean_world_mm(heart, chest)[0] < mean_world_mm(body, chest)[0] - 10
    behind = body & box(chest, (0.3, 0.7), (0.55, 0.6))
    assert heart.sum() > 3 * behind.sum()


def test_liver_is_on_the_right_below(chest: Volume) -> None:
    low = planes(within(chest, 0, 120), 0.05, 0.2)
    assert mean_world_mm(low, chest)[0] > mean_world_mm(planes(within(chest, -150, 2000), 0.5, 0.7), chest)[0] + 5
    lungs = within(chest, -940, -700)
    assert mean_world_mm(lungs, chest)[2] > mean_world_mm(low, chest)[2] + 50


def test_spine_and_table_are_at_the_back(chest: Volume) -> None:
    body = mean_world_mm(within(chest, -150, 2000), chest)
    bone = within(chest, 180, 2000) & box(chest, (0.45, 0.55), (0, 1))
    assert mean_world_mm(bone, chest)[1] < body[1] - 20
    not_air = hu(chest) > -800
    assert not_air[:, int(SHAPE[1] * 0.76) :].any()
    assert not not_air[:, : int(SHAPE[1] * 0.15)].any()


def test_lungs_narrow_towards_the_apices(chest: Volume) -> None:
    lungs = within(chest, -940, -700) & box(chest, (0.3, 0.7), (0.5, 0.68))
    area = lungs.sum(axis=(0, 1))
    assert area[int(0.85 * SHAPE[2])] < 0.6 * area[int(0.6 * SHAPE[2])]
    assert area[int(0.97 * SHAPE[2])] < 0.1 * area[int(0.6 * SHAPE[2])]


def test_lungs_have_vessels(chest: Volume) -> None:
    lungs = hu(chest)[34:46, 50:70, 24:36]
    assert np.median(lungs) == pytest.approx(-858, abs=15)
    assert (lungs > -200).any()


def test_noise_resembles_a_scanners(chest: Volume) -> None:
    liver = hu(chest)[38:50, 50:64, 4:10]
    assert liver.mean() == pytest.approx(60, abs=3)
    assert liver.std() == pytest.approx(NOISE_HU, rel=0.1)


def test_the_phantom_is_asymmetric_along_every_axis(chest: Volume) -> None:
    dense = hu(chest) > -500
    for axis in range(3):
        assert (dense != np.flip(dense, axis)).mean() > 0.01


def test_the_phantom_depends_on_its_seed_alone() -> None:
    first, again, other = (chest_phantom((24, 20, 16), SPACING_MM, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.voxels, again.voxels)
    assert not np.array_equal(first.voxels, other.voxels)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 30, 3), (40, 12, 20)])
def test_any_shape_works(shape: tuple[int, int, int]) -> None:
    assert chest_phantom(shape, (1.0, 2.0, 3.0)).shape == shape
