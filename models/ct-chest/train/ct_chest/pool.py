"""The examples that the network is trained on: made once by several processes, kept in a folder, cut into windows."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ct_chest.feed import CLIP_HU, WINDOW, normalised
from ct_chest.fields import between, chance
from ct_chest.generator import make_example


def make_pool(folder: Path, seeds: range, processes: int, *, abdominal: bool = False) -> list[Path]:
    """Makes the examples of these seeds, those that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(partial(_make, folder, abdominal), seeds))


def _make(folder: Path, abdominal: bool, seed: int) -> Path:
    path = folder / f"{seed}.npz"
    if not path.exists():
        example = make_example(seed, abdominal=abdominal)
        part = folder / f"{seed}.part"
        with part.open("wb") as file:
            np.savez(file, hu=example.hu, labels=example.labels)
        part.rename(path)
    return path


def draw_window(path: Path, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A window at random from one example, as the network sees it, with its labels.

    Where the example is smaller it is padded as the engine pads it: at the end of each axis and the beginning.
    """
    with np.load(path) as stored:
        hu, labels = stored["hu"], stored["labels"]
    starts, pads = [], []
    for size, wanted in zip(hu.shape, WINDOW, strict=True):
        starts.append(int(rng.integers(0, max(0, size - wanted) + 1)))
        missing = max(0, wanted - size)
        pads.append((missing // 2, missing - missing // 2))
    part = tuple(slice(start, start + wanted) for start, wanted in zip(starts, WINDOW, strict=True))
    hu = np.clip(hu[part], *CLIP_HU).astype(np.float32)
    _vary(hu, rng)
    return normalised(np.pad(hu, pads, constant_values=CLIP_HU[0])), np.pad(labels[part], pads)


def _vary(hu: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Calibration and noise that differ each time that an example is seen. No flips: sides must stay."""
    hu *= np.float32(between(rng, 0.96, 1.04))
    hu += np.float32(rng.normal(0, 12))
    if chance(rng, 0.3):
        hu += rng.standard_normal(hu.shape, np.float32) * np.float32(between(rng, 0, 25))
