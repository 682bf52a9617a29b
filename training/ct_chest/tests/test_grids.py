"""Comparison of masks of one scan on several grids."""

import numpy as np
import pytest
from numpy.typing import NDArray

from inference_service.imaging.geometry import Volume
from training.ct_chest.evaluation import real
from training.ct_chest.evaluation.grids import resampled, shares
from training.ct_chest.labels import BODY, BONE, NAMES, TRACHEA

SHAPE = (12, 10, 9)
SPACING_MM = (1.5, 1.0, 2.0)


@pytest.fixture
def scan() -> Volume:
    hu = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    affine = np.diag([-1.5, 1.0, 2.0, 1.0])
    affine[:3, 3] = (10, -20, 30)
    return Volume(hu, affine)


@pytest.fixture
def mask() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, len(NAMES), SHAPE).astype(np.uint8)


def test_resampling_to_the_same_spacing_is_the_identity(scan: Volume, mask: NDArray[np.uint8]) -> None:
    same, labels = resampled(scan, mask, SPACING_MM)
    np.testing.assert_array_equal(same.voxels, scan.voxels)
    np.testing.assert_array_equal(same.affine, scan.affine)
    np.testing.assert_array_equal(labels, mask)


def test_coarser_voxels_start_at_the_edge_of_the_finer_ones(scan: Volume, mask: NDArray[np.uint8]) -> None:
    coarse, labels = resampled(scan, mask, (3.0, 2.5, 2.0))
    assert coarse.shape == labels.shape == (6, 4, 9)
    assert coarse.spacing_mm == pytest.approx((3.0, 2.5, 2.0))
    for volume in (scan, coarse):
        np.testing.assert_allclose((volume.affine @ (-0.5, -0.5, -0.5, 1))[:3], (10.75, -20.5, 29))


def test_a_coarse_voxel_has_the_shares_of_the_labels_in_it() -> None:
    mask = np.zeros((8, 4, 4), np.uint8)
    mask[3:] = BODY
    of_labels = shares(mask, (1.0, 1.5, 2.0), (2.0, 1.5, 4.0))
    assert {share.shape for share in of_labels} == {(4, 4, 2)}
    np.testing.assert_allclose(np.sum(of_labels, axis=0), 1, atol=1e-6)
    line = of_labels[BODY][:, 0, 0]
    # The edge lies in the middle of the second voxel.
    np.testing.assert_allclose(line, [0, 0.5, 1, 1], atol=0.02)


def test_wide_labels_survive_the_networks_voxels_and_thin_ones_do_not() -> None:
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[5:35, 5:35, 5:35] = BODY
    mask[10:20, 10:20, 10:20] = TRACHEA
    mask[25, :, 25] = BONE
    scan = Volume(np.zeros(mask.shape, np.int16), np.diag([1.0, 1.0, 1.0, 1.0]))
    figures = dict(real._by_exact_shares(scan, mask, (2.0, 2.0, 2.0)))
    assert figures["(2.0, 2.0, 2.0) mm, trachea by exact shares"] > 0.85
    assert np.isnan(figures["(2.0, 2.0, 2.0) mm, bone by exact shares"])


def test_the_dice_of_all_labels_weights_them_by_their_size() -> None:
    first = np.array([0, 1, 1, 2, 5, 5, 0], np.uint8)
    assert real._all_labels(first, first) == 1
    # Three of five and of six voxels are the same.
    assert real._all_labels(first, np.array([1, 1, 3, 2, 5, 0, 4], np.uint8)) == pytest.approx(2 * 3 / (5 + 6))
    assert np.isnan(real._all_labels(np.zeros(3, np.uint8), np.zeros(3, np.uint8)))
