"""Prints how well the model does, through the service's own engine: `python -m ct_chest.evaluate --data DATA`.

DATA is the folder of TotalSegmentator's public test scans (chest_cta.nii.gz, example_ct.nii.gz and its segmentation).
"""

import argparse
from collections.abc import Iterator
from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct_chest.canvas import Mask, Spacing
from ct_chest.generator import FIRST_TEST_SEED, Example, make_example
from ct_chest.labels import BODY, BONE, LUNG_LEFT, LUNG_RIGHT, NAMES, TRACHEA
from ct_chest.reference import reference_lungs
from inference_service.engine import Engine, load_session
from inference_service.models import Model, read_model
from inference_service.nifti import read_nifti
from inference_service.pipeline import segment_volume
from inference_service.sessions import Session
from inference_service.stages import StageClock
from inference_service.volume import Volume

# Names and values, as they are found.
Figures: TypeAlias = Iterator[tuple[str, float]]

MODEL = Path(__file__).parents[2] / "1"
# Spacings that scanners make, in the plane and across.
SPACINGS: tuple[Spacing, ...] = ((0.9, 0.9, 2.5), (0.8, 0.8, 5.0), (1.0, 1.0, 1.5), (0.7, 0.7, 3.0))
# Parts of a chest: the axis that they are cut along (to the right, the front, the head), and from where to where.
PARTS = {
    "bases": (2, 0.0, 0.4),
    "apices": (2, 0.65, 1.0),
    "slab": (2, 0.4, 0.55),
    "few slices": (2, 0.48, 0.53),
    "left half": (0, 0.0, 0.5),
    "right half": (0, 0.5, 1.0),
}
# TotalSegmentator's: lower lobes in example_ct, and where lungs must not be found.
_LOWER_LOBES = {LUNG_RIGHT: 14, LUNG_LEFT: 11}
_LOBES = (10, 11, 12, 13, 14)
_BOWEL = (6, 18, 19, 20)
_NEAR_MM = 6
LEAST_MM3 = 2000.0
# Dice on synthetic scans of sound patients of unseen seeds, on average.
AIMS = {"lung_left": 0.97, "lung_right": 0.97, "trachea": 0.90, "bone": 0.90, "body": 0.98}


def segment(volume: Volume) -> NDArray[np.unsignedinteger]:
    """The mask that the service would write."""
    model, session = _loaded()
    segmented = segment_volume(volume, model.manifest, session, max_voxels=2**30, clock=StageClock())
    return segmented.mask


@cache
def _loaded() -> tuple[Model, Session]:
    model = read_model(MODEL)
    return model, load_session(model, Engine(("CPUExecutionProvider",), threads=2))


def dice(first: Mask, second: Mask) -> float:
    """2 |A ∩ B| / (|A| + |B|); nan where both are empty."""
    both = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / both if both else float("nan")


def ras(volume: Volume) -> Volume:
    """The same scan with axes that run to the right, the front and the head."""
    return turned(volume, *_to_ras(volume))


def turned(volume: Volume, axes: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same scan with its axes in another order and direction; its place in the world stays."""
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        change[old, new] = -1 if flip else 1
        change[old, 3] = volume.shape[old] - 1 if flip else 0
    voxels = volume.voxels.transpose(axes)[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    return Volume(voxels, volume.affine @ change)


def _to_ras(volume: Volume) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    axes = tuple(int(np.abs(volume.affine[world, :3]).argmax()) for world in range(3))
    return axes, tuple(bool(volume.affine[world, axis] < 0) for world, axis in enumerate(axes))


def synthetic(count: int, *, sound: bool) -> Figures:
    """Dice of each label on examples that nobody was trained on, on scanners' grids."""
    found: list[tuple[str, float]] = []
    for number in range(count):
        spacing = SPACINGS[number % len(SPACINGS)]
        example = make_example(FIRST_TEST_SEED + number, spacing, sound=sound)
        for name, value in compared(segment(Volume(example.hu, np.diag([*spacing, 1.0]))), example):
            found.append((name, value))
            yield f"seed +{number} {name}", value
    for name in AIMS:
        values = [value for each, value in found if each == name]
        yield f"{name}, mean of {len(values)}", float(np.mean(values))


def compared(mask: NDArray[np.unsignedinteger], example: Example) -> Figures:
    """Dice of each label that there is enough of: a handful of voxels at the edge of the scan says nothing."""
    for label, name in enumerate(NAMES):
        truth = example.labels == label
        if name in AIMS and np.count_nonzero(truth) * np.prod(example.spacing_mm) > LEAST_MM3:
            yield name, dice(mask == label, truth)


def chest_cta(scan: Volume) -> Figures:
    """Lungs and sides against thresholds and connectivity."""
    upright = ras(scan)
    mask = segment(upright)
    truth = reference_lungs(upright.voxels.astype(np.int16), upright.spacing_mm[0])
    for label in (LUNG_LEFT, LUNG_RIGHT):
        yield f"Dice {NAMES[label]}", dice(mask == label, truth == label)
    lungs = np.isin(mask, (LUNG_LEFT, LUNG_RIGHT))
    yield "Dice both lungs", dice(lungs, truth > 0)
    agreed = lungs & (truth > 0)
    yield "share of lung voxels on the right side", float(np.mean(mask[agreed] == truth[agreed]))


def partial_scans(scan: Volume) -> Figures:
    """Dice of both lungs where only a part of the chest was scanned, against the thresholds' answer on the whole."""
    upright = ras(scan)
    truth = reference_lungs(upright.voxels.astype(np.int16), upright.spacing_mm[0])
    for name, (axis, first, last) in PARTS.items():
        start, stop = (round(share * upright.shape[axis]) for share in (first, last))
        part = tuple(slice(start, stop) if each == axis else slice(None) for each in range(3))
        mask, expected = segment(Volume(upright.voxels[part], upright.affine)), truth[part]
        lungs = np.isin(mask, (LUNG_LEFT, LUNG_RIGHT))
        yield f"{name}, {stop - start} voxels", dice(lungs, expected > 0)
        agreed = lungs & (expected > 0)
        yield f"{name}, on the right side", float(np.mean(mask[agreed] == expected[agreed]))


def example_ct(scan: Volume, reference: Volume) -> Figures:
    """Lung bases found, and none in the bowel or outside the body."""
    mask, truth = segment(scan), reference.voxels
    for label, lobe in _LOWER_LOBES.items():
        yield f"recall {NAMES[label]}", float(np.mean(mask[truth == lobe] == label))
    lungs = np.isin(mask, (LUNG_LEFT, LUNG_RIGHT))
    yield "lung, ml", lungs.sum() * scan.voxel_volume_ml
    away_mm = ndimage.distance_transform_edt(~np.isin(truth, _LOBES), sampling=scan.spacing_mm)
    yield f"share of lung more than {_NEAR_MM} mm from a lobe", float(np.mean(away_mm[lungs] > _NEAR_MM))
    yield "share of lung in stomach or bowel", float(np.mean(np.isin(truth[lungs], _BOWEL)))
    yield "share of lung outside the body", float(np.mean(~_body(scan)[lungs]))


def _body(scan: Volume) -> Mask:
    """The largest dense region, slice by slice filled."""
    components, _ = ndimage.label(ndimage.binary_opening(scan.voxels.astype(np.int16) > -300, iterations=1))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    body = components == sizes.argmax()
    return np.stack([ndimage.binary_fill_holes(body[:, :, k]) for k in range(body.shape[2])], 2)


def robust(scan: Volume) -> Figures:
    """Agreement of the masks of one scan that is turned, cast and resampled: the least Dice of any label."""
    mask = segment(scan)
    for axes in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            expected = turned(Volume(mask, scan.affine), axes, flips).voxels
            yield f"axes {axes}, flipped {flips}", _agreement(segment(turned(scan, axes, flips)), expected)
    for dtype in (">i2", "int32", "float32", "float64"):
        other = segment(Volume(scan.voxels.astype(dtype), scan.affine))
        yield dtype, _agreement(other, mask)
    for spacing in ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (0.8, 0.8, 2.5), (1.2, 1.0, 5.0), (3.0, 3.0, 5.0)):
        other_scan, expected = resampled(scan, mask, spacing)
        other = segment(other_scan)
        for label in (LUNG_LEFT, LUNG_RIGHT, TRACHEA, BONE, BODY):
            yield f"{spacing} mm, {NAMES[label]}", dice(other == label, expected == label)


def _agreement(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    return min(dice(first == label, second == label) for label in np.unique(second))


def resampled(
    scan: Volume, mask: NDArray[np.unsignedinteger], spacing: Spacing
) -> tuple[Volume, NDArray[np.unsignedinteger]]:
    """The scan at another spacing, averaged where that is coarser, and the labels that have most of each voxel there.

    The mask's nearest labels would not do: of a rib thinner than a voxel they have here a hole and there a lump.
    """
    steps = [new / old for new, old in zip(spacing, scan.spacing_mm, strict=True)]
    shape = [max(1, int(size / step)) for size, step in zip(scan.shape, steps, strict=True)]
    places = [(np.arange(size) + 0.5) * step - 0.5 for size, step in zip(shape, steps, strict=True)]
    grid = np.meshgrid(*places, indexing="ij")
    sigmas = [0.35 * max(0, step - 1) for step in steps]

    def averaged(values: NDArray[np.float32]) -> NDArray[np.float32]:
        at: NDArray[np.float32] = ndimage.map_coordinates(
            ndimage.gaussian_filter(values, sigmas), grid, order=1, mode="nearest"
        )
        return at

    change = np.diag([*steps, 1.0])
    change[:3, 3] = [line[0] for line in places]
    voxels = np.rint(averaged(scan.voxels.astype(np.float32))).astype(np.int16)
    shares = [averaged((mask == label).astype(np.float32)) for label in range(len(NAMES))]
    return Volume(voxels, scan.affine @ change), np.argmax(shares, axis=0).astype(mask.dtype)


def main() -> None:
    """Prints every section that there is data for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the real scans")
    parser.add_argument("--synthetic", type=int, default=8, help="synthetic volumes")
    arguments = parser.parse_args()
    sections: list[tuple[str, Figures]] = [
        ("synthetic volumes of sound patients, unseen seeds", synthetic(arguments.synthetic, sound=True)),
        ("the same with what ails bones and arteries", synthetic(arguments.synthetic // 2, sound=False)),
    ]
    if arguments.data is not None:
        cta = _read(arguments.data / "chest_cta.nii.gz")
        example, truth = (
            _read(arguments.data / name) for name in ("example_ct.nii.gz", "example_seg_fast_force_split.nii.gz")
        )
        sections += [
            ("chest_cta", chest_cta(cta)),
            ("parts of chest_cta", partial_scans(cta)),
            ("example_ct", example_ct(example, truth)),
            ("robust", robust(cta)),
        ]
    for title, figures in sections:
        print(title)  # noqa: T201
        for name, value in figures:
            print(f"  {name}: {value:.4f}", flush=True)  # noqa: T201


def _read(path: Path) -> Volume:
    return read_nifti(path, 2**30)[0]


if __name__ == "__main__":
    main()
