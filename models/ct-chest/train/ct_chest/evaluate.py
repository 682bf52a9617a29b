"""Prints how well the model does, through the service's own engine: `python -m ct_chest.evaluate --data DATA`.

DATA is the folder of TotalSegmentator's public test scans (chest_cta.nii.gz, example_ct.nii.gz and its segmentation).
"""

import argparse
import time
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct_chest.canvas import Mask, Spacing
from ct_chest.generator import FIRST_TEST_SEED, make_example
from ct_chest.labels import BODY, BONE, LUNG_LEFT, LUNG_RIGHT, NAMES, TRACHEA
from ct_chest.reference import reference_lungs
from inference_service.engine import Engine, load_session
from inference_service.models import Model, read_model
from inference_service.nifti import read_nifti
from inference_service.pipeline import segment_volume
from inference_service.sessions import Session
from inference_service.stages import StageClock
from inference_service.volume import Volume

MODEL = Path(__file__).parents[2] / "1"
# Spacings that scanners make, in the plane and across.
SPACINGS: tuple[Spacing, ...] = ((0.9, 0.9, 2.5), (0.8, 0.8, 5.0), (1.0, 1.0, 1.5), (0.7, 0.7, 3.0))
# TotalSegmentator's: lower lobes in example_ct, and where lungs must not be found.
_LOWER_LOBES = {LUNG_RIGHT: 14, LUNG_LEFT: 11}
_LOBES = (10, 11, 12, 13, 14)
_BOWEL = (6, 18, 19, 20)


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


def synthetic(count: int) -> Iterator[str]:
    """Dice of each label on examples that nobody was trained on, on scanners' grids."""
    masks: dict[int, list[float]] = {label: [] for label in range(1, len(NAMES))}
    for number in range(count):
        spacing = SPACINGS[number % len(SPACINGS)]
        example = make_example(FIRST_TEST_SEED + number, spacing)
        mask = segment(Volume(example.hu, np.diag([*spacing, 1.0])))
        found = {label: dice(mask == label, example.labels == label) for label in masks}
        for label, value in found.items():
            # A handful of voxels at the edge of the scan says nothing about a label.
            if np.count_nonzero(example.labels == label) * np.prod(spacing) > 1000:
                masks[label].append(value)
        yield f"  seed +{number} {example.hu.shape} " + " ".join(f"{value:.3f}" for value in found.values())
    for label, values in masks.items():
        yield f"  {NAMES[label]:10} mean {np.mean(values):.4f}, least {np.min(values):.4f} of {len(values)}"


def chest_cta(scan: Volume) -> Iterator[str]:
    """Lungs and sides against thresholds and connectivity."""
    upright = ras(scan)
    began = time.perf_counter()
    mask = segment(upright)
    yield f"  {time.perf_counter() - began:.1f} s"
    truth = reference_lungs(upright.voxels.astype(np.int16), upright.spacing_mm[0])
    for label in (LUNG_LEFT, LUNG_RIGHT):
        yield f"  {NAMES[label]} Dice {dice(mask == label, truth == label):.4f}"
    lungs = np.isin(mask, (LUNG_LEFT, LUNG_RIGHT))
    yield f"  both lungs Dice {dice(lungs, truth > 0):.4f}"
    agreed = lungs & (truth > 0)
    yield f"  side right for {np.mean(mask[agreed] == truth[agreed]):.4%} of lung voxels"


def example_ct(scan: Volume, reference: Volume) -> Iterator[str]:
    """Lung bases found, and none in the bowel or outside the body."""
    mask, truth = segment(scan), reference.voxels
    for label, lobe in _LOWER_LOBES.items():
        yield f"  {NAMES[label]} recall of label {lobe}: {np.mean(mask[truth == lobe] == label):.4f}"
    lungs = np.isin(mask, (LUNG_LEFT, LUNG_RIGHT))
    near = ndimage.binary_dilation(np.isin(truth, _LOBES), iterations=2)
    yield f"  lung {lungs.sum() * scan.voxel_volume_ml:.0f} ml; more than 6 mm from a lobe: {np.mean(~near[lungs]):.4%}"
    yield f"  in stomach or bowel: {np.mean(np.isin(truth[lungs], _BOWEL)):.4%}"
    yield f"  outside the body: {np.mean(~_body(scan)[lungs]):.4%}"


def _body(scan: Volume) -> Mask:
    """The largest dense region, slice by slice filled."""
    components, _ = ndimage.label(ndimage.binary_opening(scan.voxels.astype(np.int16) > -300, iterations=1))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    body = components == sizes.argmax()
    return np.stack([ndimage.binary_fill_holes(body[:, :, k]) for k in range(body.shape[2])], 2)


def robust(scan: Volume) -> Iterator[str]:
    """Agreement of the masks of one scan that is turned, cast and resampled."""
    mask = segment(scan)
    worst = 1.0
    for axes in ((0, 1, 2), (2, 0, 1), (1, 0, 2)):
        for flips in product((False, True), repeat=3):
            other = segment(turned(scan, axes, flips))
            again = turned(Volume(mask, scan.affine), axes, flips).voxels
            worst = min(worst, _agreement(other, again.astype(np.uint8)))
    yield f"  24 orientations: least Dice of any label {worst:.4f}"
    for dtype in (np.int16, np.int32, np.float32, np.float64):
        other = segment(Volume(scan.voxels.astype(dtype), scan.affine))
        yield f"  {np.dtype(dtype).name}: {_agreement(other, mask):.4f}"
    for spacing in ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (0.8, 0.8, 2.5), (1.2, 1.0, 5.0), (3.0, 3.0, 5.0)):
        other_scan, nearest = _resampled(scan, mask, spacing)
        other = segment(other_scan)
        lungs = [np.isin(each, (LUNG_LEFT, LUNG_RIGHT)) for each in (other, nearest)]
        yield f"  {spacing} mm: lungs {dice(*lungs):.4f}; " + ", ".join(
            f"{NAMES[label]} {dice(other == label, nearest == label):.4f}"
            for label in (LUNG_LEFT, LUNG_RIGHT, TRACHEA, BONE, BODY)
        )


def _agreement(first: NDArray[np.unsignedinteger], second: NDArray[np.unsignedinteger]) -> float:
    return min(dice(first == label, second == label) for label in np.unique(second))


def _resampled(
    scan: Volume, mask: NDArray[np.unsignedinteger], spacing: Spacing
) -> tuple[Volume, NDArray[np.unsignedinteger]]:
    """The scan at another spacing, averaged where that is coarser, and the nearest labels of its mask."""
    steps = [new / old for new, old in zip(spacing, scan.spacing_mm, strict=True)]
    shape = [max(1, int(size / step)) for size, step in zip(scan.shape, steps, strict=True)]
    places = [(np.arange(size) + 0.5) * step - 0.5 for size, step in zip(shape, steps, strict=True)]
    grid = np.meshgrid(*places, indexing="ij")
    blurred = ndimage.gaussian_filter(scan.voxels.astype(np.float32), [0.35 * max(0, step - 1) for step in steps])
    voxels = ndimage.map_coordinates(blurred, grid, order=1, mode="nearest")
    change = np.diag([*steps, 1.0])
    change[:3, 3] = [line[0] for line in places]
    return Volume(np.rint(voxels).astype(np.int16), scan.affine @ change), ndimage.map_coordinates(
        mask, grid, order=0, mode="nearest"
    )


def main() -> None:
    """Prints every section that there is data for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the real scans")
    parser.add_argument("--synthetic", type=int, default=8, help="synthetic volumes")
    arguments = parser.parse_args()
    sections: list[tuple[str, Iterator[str]]] = [("synthetic volumes, unseen seeds", synthetic(arguments.synthetic))]
    if arguments.data is not None:
        cta = _read(arguments.data / "chest_cta.nii.gz")
        example, truth = (
            _read(arguments.data / name) for name in ("example_ct.nii.gz", "example_seg_fast_force_split.nii.gz")
        )
        sections += [("chest_cta", chest_cta(cta)), ("example_ct", example_ct(example, truth)), ("robust", robust(cta))]
    for title, lines in sections:
        print(title)  # noqa: T201
        for line in lines:
            print(line, flush=True)  # noqa: T201


def _read(path: Path) -> Volume:
    return read_nifti(path, 2**30)[0]


if __name__ == "__main__":
    main()
