"""Measures accuracy on TotalSegmentator's public test scans."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.imaging.geometry import Volume
from inference_service.imaging.resampling import resize, resized_shape
from training.ct_chest.evaluation.grids import in_round_view, ras, resampled, shares, turned
from training.ct_chest.evaluation.reference import reference_lungs
from training.ct_chest.evaluation.scoring import MODEL, Figures, dice, segment
from training.ct_chest.feed import KINDS, SPACING_MM, shape_of
from training.ct_chest.labels import BODY, BONE, LUNG_LEFT, LUNG_RIGHT, NAMES, TRACHEA
from training.ct_chest.synthetic.canvas import Mask, Spacing
from training.ct_chest.synthetic.scanner import PADDINGS_HU

LUNGS = (LUNG_LEFT, LUNG_RIGHT)
# Parts of a chest: the axis that they are cut along (right, front, head), and their start and end as shares of it.
PARTS = {
    "bases": (2, 0.0, 0.4),
    "apices": (2, 0.65, 1.0),
    "slab": (2, 0.4, 0.55),
    "few slices": (2, 0.48, 0.53),
    "left half": (0, 0.0, 0.5),
    "right half": (0, 0.5, 1.0),
}
# TotalSegmentator's label values: lower lobes, all lobes, stomach and bowel (where no lung may be found), bones.
_LOWER_LOBES = {LUNG_RIGHT: 14, LUNG_LEFT: 11}
_LOBES = (10, 11, 12, 13, 14)
_BOWEL = (6, 18, 19, 20)
_BONES = {"hip bones": (77, 78), "sacrum": (25,), "vertebrae": tuple(range(26, 51)), "ribs": tuple(range(92, 116))}
# Lung this close to a lobe is only a different edge, not an error.
_NEAR_MM = 6


def chest_cta(scan: Volume, folder: Path = MODEL) -> Figures:
    """Lungs and their sides, compared with a segmentation by thresholds and connectivity."""
    upright, truth = _with_reference(scan)
    yield from _lungs(segment(upright, folder), truth, "whole")


def partial_scans(scan: Volume, folder: Path = MODEL) -> Figures:
    """Lungs in parts of the chest, compared with the threshold segmentation of the whole scan."""
    upright, truth = _with_reference(scan)
    for name, (axis, first, last) in PARTS.items():
        start, stop = (round(share * upright.shape[axis]) for share in (first, last))
        part = tuple(slice(start, stop) if each == axis else slice(None) for each in range(3))
        yield from _lungs(segment(Volume(upright.voxels[part], upright.affine), folder), truth[part], name)


def padded(scan: Volume, folder: Path = MODEL) -> Figures:
    """Lungs at 3×3×5 mm in a round field of view that is surrounded by padding."""
    coarse, truth = resampled(*_with_reference(scan), (3.0, 3.0, 5.0))
    for hu in PADDINGS_HU:
        framed, kept = in_round_view(coarse, truth, hu)
        yield from _lungs(segment(framed, folder), kept, f"{hu} HU")


def _with_reference(scan: Volume) -> tuple[Volume, NDArray[np.uint8]]:
    """The scan in RAS+ axes, and its lungs by thresholds and connectivity."""
    upright = ras(scan)
    return upright, reference_lungs(upright.voxels.astype(np.int16), upright.spacing_mm[0])


def _lungs(mask: NDArray[np.unsignedinteger], truth: NDArray[np.unsignedinteger], name: str) -> Figures:
    """Dice of each lung and of both, and the share of lung in both masks that is on the same side."""
    for label in LUNGS:
        yield f"{name}, Dice {NAMES[label]}", dice(mask == label, truth == label)
    found = np.isin(mask, LUNGS)
    there = np.isin(truth, LUNGS)
    yield f"{name}, Dice both lungs", dice(found, there)
    agreed = found & there
    yield f"{name}, on the correct side", float(np.mean(mask[agreed] == truth[agreed]))


def example_ct(scan: Volume, reference: Volume, folder: Path = MODEL) -> Figures:
    """Recall of the lung bases, and lung that is wrongly found in the bowel or outside the body."""
    mask = segment(scan, folder)
    truth = reference.voxels
    for label, lobe in _LOWER_LOBES.items():
        yield f"recall {NAMES[label]}", float(np.mean(mask[truth == lobe] == label))
    lungs = np.isin(mask, LUNGS)
    yield "lung, ml", lungs.sum() * scan.voxel_volume_ml
    away_mm = ndimage.distance_transform_edt(~np.isin(truth, _LOBES), sampling=scan.spacing_mm)
    yield f"share of lung more than {_NEAR_MM} mm from a lobe", float(np.mean(away_mm[lungs] > _NEAR_MM))
    yield "share of lung in stomach or bowel", float(np.mean(np.isin(truth[lungs], _BOWEL)))
    yield "share of lung outside the body", float(np.mean(~_body(scan)[lungs]))
    yield from _recall_of_bones(mask, truth)


def example_dicom(scan: Volume, reference: Volume, folder: Path = MODEL) -> Figures:
    """Lung wrongly found in an abdomen, arms beside it, under a blanket with air in its folds; recall of bones."""
    upright = ras(scan)
    truth = ras(reference).voxels
    mask = segment(upright, folder)
    yield "lung, ml", np.isin(mask, LUNGS).sum() * upright.voxel_volume_ml
    yield from _recall_of_bones(mask, truth)


def _recall_of_bones(mask: NDArray[np.unsignedinteger], truth: NDArray[np.generic]) -> Figures:
    """Recall of each group of bones that occurs in the reference."""
    for name, values in _BONES.items():
        there = np.isin(truth, values)
        if there.any():
            yield f"recall of {name}", float(np.mean(mask[there] == BONE))


def _body(scan: Volume) -> Mask:
    """The largest dense region, filled slice by slice."""
    components, _ = ndimage.label(ndimage.binary_opening(scan.voxels.astype(np.int16) > -300, iterations=1))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    body = components == sizes.argmax()
    return np.stack([ndimage.binary_fill_holes(body[:, :, k]) for k in range(body.shape[2])], 2)


def robust(scan: Volume, folder: Path = MODEL) -> Figures:
    """Agreement of the masks of a scan that is turned, cast and resampled: the lowest Dice, or each label's."""
    mask = segment(scan, folder)
    for axes in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            expected = turned(Volume(mask, scan.affine), axes, flips).voxels
            yield f"axes {axes}, flipped {flips}", _agreement(segment(turned(scan, axes, flips), folder), expected)
    for dtype in (">i2", "int32", "float32", "float64"):
        other = segment(Volume(scan.voxels.astype(dtype), scan.affine), folder)
        yield dtype, _agreement(other, mask)
    for spacing in ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (0.8, 0.8, 2.5), (1.2, 1.0, 5.0), (3.0, 3.0, 5.0)):
        other_scan, expected = resampled(scan, mask, spacing)
        other = segment(other_scan, folder)
        for label in (*LUNGS, TRACHEA, BONE, BODY):
            yield f"{spacing} mm, {NAMES[label]}", dice(other == label, expected == label)
        yield f"{spacing} mm, all labels", _all_labels(other, expected)
        yield from _by_exact_shares(scan, mask, spacing)


def _by_exact_shares(scan: Volume, mask: NDArray[np.unsignedinteger], spacing: Spacing) -> Figures:
    """The agreement of a perfect network, which gives each label's exact share: a reference for thin labels.

    Its output loses only detail finer than the network's voxels, and what the blur of `shares` removes.
    """
    own = _decided([(mask == label).astype(np.float32) for label in range(len(NAMES))], scan.spacing_mm)
    expected = np.argmax(shares(own, scan.spacing_mm, spacing), axis=0)
    other = _decided(shares(mask, scan.spacing_mm, spacing), spacing)
    for label in (TRACHEA, BONE):
        yield f"{spacing} mm, {NAMES[label]} by exact shares", dice(other == label, expected == label)


def _decided(of_labels: list[NDArray[np.float32]], spacing_mm: Spacing) -> NDArray[np.uint8]:
    """Decides the labels of a scan's voxels from their shares, resampled to the network's grid and back."""
    shape = shape_of(of_labels[0])
    of_network = resized_shape(shape, spacing_mm, SPACING_MM)
    back = [resize(resize(share, of_network, KINDS), shape, ("linear",) * 3) for share in of_labels]
    mask: NDArray[np.uint8] = np.argmax(back, axis=0).astype(np.uint8)
    return mask


def _all_labels(first: NDArray[np.unsignedinteger], second: NDArray[np.unsignedinteger]) -> float:
    """Dice of all labels at once without the background: total overlap over total size; dominated by body."""
    sizes = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero((first == second) & (second > 0)) / sizes if sizes else float("nan")


def _agreement(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    return min(dice(first == label, second == label) for label in np.unique(second))
