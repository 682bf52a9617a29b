"""Measures accuracy on synthetic scans, and speed, in the service's own engine."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from inference_service.core.execution import ExecutionOptions
from inference_service.core.progress import StageClock
from inference_service.embedded.phantom import chest_phantom
from inference_service.engine.model_registry import read_model
from inference_service.engine.session_cache import LoadedModel, load_model
from inference_service.imaging.geometry import Volume
from inference_service.segmentation.loaded_networks import loaded_networks
from inference_service.segmentation.resources import Resources, StageMonitor, job_threads
from inference_service.segmentation.volume_segmentation import segment_volume
from training.ct_chest.labels import NAMES
from training.ct_chest.seeds import FIRST_HELD_BACK_SEED, FIRST_TEST_SEED
from training.ct_chest.synthetic.canvas import Mask, Spacing
from training.ct_chest.synthetic.generator import Example, make_example

# Names and values, yielded as they are computed.
Figures: TypeAlias = Iterator[tuple[str, float]]

MODEL = Path(__file__).parents[3] / "models" / "ct-chest" / "1"
# Mean Dice to reach on synthetic scans of healthy patients, of seeds that the training has not seen.
AIMS = {"lung_left": 0.97, "lung_right": 0.97, "trachea": 0.90, "bone": 0.90, "body": 0.98}
# Typical spacings of scanners: in the plane, and between slices.
_SPACINGS: tuple[Spacing, ...] = ((0.9, 0.9, 2.5), (0.8, 0.8, 5.0), (1.0, 1.0, 1.5), (0.7, 0.7, 3.0))
# Labels with a smaller volume are not scored.
_MIN_MM3 = 2000.0
_THREADS = 2


def segment(volume: Volume, folder: Path = MODEL) -> NDArray[np.unsignedinteger]:
    """Returns the mask that the service writes with the model in `folder`."""
    loaded = _loaded(folder)
    return segment_volume([volume], loaded.manifest, loaded_networks(loaded, 1), max_voxels=2**30).mask


@cache
def _loaded(folder: Path) -> LoadedModel:
    return load_model(read_model(folder), ExecutionOptions(("CPUExecutionProvider",), threads=_THREADS))


def dice(first: Mask, second: Mask) -> float:
    """2 |A ∩ B| / (|A| + |B|); nan where both are empty."""
    both = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / both if both else float("nan")


def first_seed(folder: Path) -> int:
    """The first seed of the scans for the model in `folder`; the tests' seeds are for the repository's model only."""
    return FIRST_TEST_SEED if folder.resolve() == MODEL.resolve() else FIRST_HELD_BACK_SEED + 1000


def synthetic(count: int, folder: Path = MODEL, *, healthy: bool) -> Figures:
    """Dice of each label on held-back examples, at spacings typical of scanners."""
    first = first_seed(folder)
    found: list[tuple[str, float]] = []
    for number in range(count):
        spacing = _SPACINGS[number % len(_SPACINGS)]
        example = make_example(first + number, spacing, healthy=healthy)
        for name, value in compared(segment(Volume(example.hu, np.diag([*spacing, 1.0])), folder), example):
            found.append((name, value))
            yield f"seed {first + number} {name}", value
    for name in AIMS:
        values = [value for each, value in found if each == name]
        yield f"{name}, mean of {len(values)}", float(np.mean(values))


def compared(mask: NDArray[np.unsignedinteger], example: Example) -> Figures:
    """Dice of each label, without those of a few voxels at the edge of the scan, which would say nothing."""
    for label, name in enumerate(NAMES):
        truth = example.labels == label
        if name in AIMS and np.count_nonzero(truth) * np.prod(example.spacing_mm) > _MIN_MM3:
            yield name, dice(mask == label, truth)


def timed(folder: Path = MODEL, repeats: int = 3) -> Figures:
    """Seconds for a phantom of 512×512×300 at 0.7×0.7×1 mm, from memory to the mask; the median of the repeats."""
    phantom = chest_phantom((512, 512, 300), (0.7, 0.7, 1.0))
    loaded = _loaded(folder)
    networks = loaded_networks(loaded, 1)
    clocks = [StageClock() for _ in range(repeats)]
    with job_threads(_THREADS) as threads:
        for clock in clocks:
            resources = Resources(threads, monitor=StageMonitor(clock))
            segment_volume([phantom], loaded.manifest, networks, max_voxels=2**30, resources=resources)
    for stage in clocks[0].seconds:
        yield f"{stage}, s", float(np.median([clock.seconds[stage] for clock in clocks]))
    yield "all, s", float(np.median([sum(clock.seconds.values()) for clock in clocks]))
