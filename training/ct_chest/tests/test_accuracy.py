"""Accuracy of the model in the repository, on held-back synthetic chests and on real ones."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inference_service.formats.nifti import read_nifti
from inference_service.formats.read_limits import ReadLimits
from inference_service.imaging.geometry import Volume
from training.ct_chest import labels
from training.ct_chest.evaluate import read_series
from training.ct_chest.evaluation.grids import resampled, turned
from training.ct_chest.evaluation.real import LUNGS, PARTS, chest_cta, example_ct, example_dicom, padded, partial_scans
from training.ct_chest.evaluation.scoring import AIMS, compared, dice, segment
from training.ct_chest.seeds import FIRST_TEST_SEED
from training.ct_chest.synthetic.canvas import Spacing
from training.ct_chest.synthetic.generator import make_example
from training.ct_chest.synthetic.scanner import PADDINGS_HU

MAX_VOXELS = 2**24
# Lowest Dice of any of these synthetic scans; the card names others that are below.
LEAST = {"lung_left": 0.93, "lung_right": 0.93, "trachea": 0.90, "bone": 0.82, "body": 0.97}
# The same for diseased patients, one of whom has a Dice of bone of 0.75.
LEAST_OF_DISEASED = LEAST | {"lung_left": 0.91, "lung_right": 0.91, "bone": 0.72}


def real(path: Path) -> Volume:
    return read_nifti(path, ReadLimits(MAX_VOXELS)).volume


@pytest.fixture(scope="module")
def chest(real_scans: Path) -> Volume:
    return real(real_scans / "chest_cta.nii.gz")


@pytest.fixture(scope="module")
def chest_mask(chest: Volume) -> NDArray[np.unsignedinteger]:
    return segment(chest)


def figures_of_synthetic_chest(seed: int, spacing: Spacing, *, healthy: bool) -> dict[str, float]:
    example = make_example(seed, spacing, healthy=healthy)
    return dict(compared(segment(Volume(example.hu, np.diag([*spacing, 1.0]))), example))


def figures_of_synthetic_chests(count: int, *, healthy: bool) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in AIMS}
    for number in range(count):
        spacing = ((1.3, 1.3, 2.5), (1.2, 1.2, 5.0))[number % 2]
        for name, value in figures_of_synthetic_chest(FIRST_TEST_SEED + 100 + number, spacing, healthy=healthy).items():
            found[name].append(value)
    return found


# The first seeds from 100 on whose scans show all labels.
@pytest.mark.parametrize(("seed", "healthy", "least"), [(101, True, LEAST), (100, False, LEAST_OF_DISEASED)])
def test_dice_of_an_unseen_synthetic_chest(seed: int, healthy: bool, least: dict[str, float]) -> None:
    figures = figures_of_synthetic_chest(FIRST_TEST_SEED + seed, (2.0, 2.0, 3.0), healthy=healthy)
    assert figures.keys() == least.keys()
    for name, value in figures.items():
        assert value >= least[name], name


# Drawing the scans takes most of the time.
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mean_dice_of_unseen_synthetic_chests() -> None:
    for name, values in figures_of_synthetic_chests(6, healthy=True).items():
        assert len(values) >= 3
        assert np.mean(values) >= AIMS[name], name
        assert min(values) >= LEAST[name], name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mean_dice_of_unseen_chests_with_diseased_bones_and_arteries() -> None:
    """Disease lowers the Dice of bone most, which then misses its target."""
    for name, values in figures_of_synthetic_chests(4, healthy=False).items():
        assert len(values) >= 2
        assert min(values) >= LEAST_OF_DISEASED[name], name


def test_accuracy_of_the_lungs_of_a_real_chest(chest: Volume) -> None:
    figures = dict(chest_cta(chest))
    assert figures["whole, Dice both lungs"] >= 0.95
    assert figures["whole, on the correct side"] >= 0.99


def test_accuracy_on_parts_of_a_real_chest(chest: Volume) -> None:
    figures = dict(partial_scans(chest))
    # Half a scan shows one lung and the edge of the other; parts of that edge get the wrong side, a documented error.
    sides = dict.fromkeys(PARTS, 0.99) | {"left half": 0.90, "right half": 0.92}
    for part, least in sides.items():
        assert figures[f"{part}, Dice both lungs"] >= 0.95, part
        assert figures[f"{part}, on the correct side"] >= least, part


@pytest.mark.parametrize(
    ("spacing", "trachea", "bone"),
    [((2.0, 2.0, 2.0), 0.94, 0.90), ((0.8, 0.8, 2.5), 0.94, 0.92), ((3.0, 3.0, 5.0), 0.94, 0.86)],
)
def test_accuracy_on_a_real_chest_at_another_spacing(
    chest: Volume, chest_mask: NDArray[np.unsignedinteger], spacing: Spacing, trachea: float, bone: float
) -> None:
    other_scan, expected = resampled(chest, chest_mask, spacing)
    other = segment(other_scan)
    # Thin labels agree less; even exact shares of the network's voxels do not reach 0.98 for bone.
    least = {labels.TRACHEA: trachea, labels.BONE: bone}
    for label in (*LUNGS, labels.BODY, *least):
        assert dice(other == label, expected == label) >= least.get(label, 0.98), label


def test_accuracy_on_a_padded_real_chest(chest: Volume) -> None:
    figures = dict(padded(chest))
    for name in ("lung_left", "lung_right", "both lungs"):
        values = {figures[f"{hu} HU, Dice {name}"] for hu in PADDINGS_HU}
        assert len(values) == 1, name
        assert min(values) >= 0.95, name


def test_lung_bases_of_a_real_abdomen_and_no_lung_in_its_bowel(real_scans: Path) -> None:
    reference = real(real_scans / "example_seg_fast_force_split.nii.gz")
    figures = dict(example_ct(real(real_scans / "example_ct.nii.gz"), reference))
    assert min(figures["recall lung_left"], figures["recall lung_right"]) >= 0.90
    assert figures["share of lung in stomach or bowel"] <= 0.01
    assert figures["share of lung outside the body"] <= 0.01
    for bones, least in (("hip bones", 0.80), ("vertebrae", 0.73), ("sacrum", 0.48), ("ribs", 0.41)):
        assert figures[f"recall of {bones}"] >= least, bones


def test_no_lung_in_the_air_under_a_blanket(real_scans: Path) -> None:
    reference = real(real_scans / "example_seg_dicom.nii.gz")
    figures = dict(example_dicom(read_series(real_scans / "example_ct_dicom"), reference))
    assert figures["lung, ml"] == 0
    assert figures["recall of vertebrae"] >= 0.85
    assert figures["recall of ribs"] >= 0.65


@pytest.mark.parametrize(("axes", "flips"), [((0, 1, 2), (True, True, False)), ((2, 0, 1), (False, True, True))])
def test_the_orientation_of_a_real_chest_does_not_matter(
    chest: Volume,
    chest_mask: NDArray[np.unsignedinteger],
    axes: tuple[int, int, int],
    flips: tuple[bool, bool, bool],
) -> None:
    mask = turned(Volume(chest_mask, chest.affine), axes, flips).voxels
    other = segment(turned(chest, axes, flips))
    for label in range(len(labels.NAMES)):
        assert dice(other == label, mask == label) > 0.98, label


@pytest.mark.parametrize("dtype", [">i2", "float64"])
def test_the_dtype_of_a_real_chest_does_not_matter(
    chest: Volume, chest_mask: NDArray[np.unsignedinteger], dtype: str
) -> None:
    np.testing.assert_array_equal(segment(Volume(chest.voxels.astype(dtype), chest.affine)), chest_mask)
