"""The examples that the network is trained on: drawn once by several processes and stored in a folder."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from inference_service.imaging import interpolation, resampling
from inference_service.imaging.geometry import Shape
from inference_service.imaging.resampling import resize, resized_shape
from training.ct_chest.feed import CLIP_HU, KINDS, SPACING_MM, shape_of
from training.ct_chest.labels import NAMES
from training.ct_chest.synthetic.generator import make_example
from training.ct_chest.synthetic.scanner import draw_spacing

_PACKAGE = Path(__file__).parent
# Modules of this package that decide what an example is: after a change examples are drawn again.
_DRAWN_BY = (
    "feed",
    "labels",
    "pool",
    *sorted(f"synthetic.{path.stem}" for path in (_PACKAGE / "synthetic").glob("[!_]*.py")),
)


class Shares(NamedTuple):
    """The two labels with the largest shares of each voxel; the shares of all others count as the first's.

    Attributes:
        first: Shape (i, j, k), uint8: the label with the largest share.
        second: Shape (i, j, k), uint8: the label with the second largest share.
        share: Shape (i, j, k), uint8: the second label's share, in 255ths.
    """

    first: NDArray[np.uint8]
    second: NDArray[np.uint8]
    share: NDArray[np.uint8]


def digest(*modules: str) -> str:
    """Twelve hexadecimal digits that change with the source of any of these modules of the package."""
    sources = sha256()
    for module in modules:
        sources.update((_PACKAGE / f"{module.replace('.', '/')}.py").read_bytes())
    return sources.hexdigest()[:12]


def pool_folder(work: Path) -> Path:
    """The folder of examples, named by the versions of all code that draws them, so that older ones are not reused."""
    sources = Path(interpolation.__file__).read_bytes() + Path(resampling.__file__).read_bytes()
    resampled_by = sha256(sources).hexdigest()[:12]
    return work / f"examples-{digest(*_DRAWN_BY)}-{resampled_by}-numpy{np.__version__}-scipy{scipy.__version__}"


def make_pool(folder: Path, seeds: Sequence[int], processes: int, *, abdominal: bool = False) -> list[Path]:
    """Draws the examples of these seeds that are missing in the folder; returns the files of all."""
    folder.mkdir(parents=True, exist_ok=True)
    # A fork would copy a process that runs PyTorch's threads, which may deadlock.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(partial(_make, folder, abdominal), seeds))


def _make(folder: Path, abdominal: bool, seed: int) -> Path:
    """Draws an example at a random spacing, then clips it and resamples it to the network's, as the service does."""
    path = folder / f"{seed}.npz"
    if not path.exists():
        example = make_example(seed, draw_spacing(np.random.default_rng((seed, 1))), abdominal=abdominal)
        shape = resized_shape(shape_of(example.hu), example.spacing_mm, SPACING_MM)
        hu = np.rint(resize(np.clip(example.hu, *CLIP_HU), shape, KINDS)).astype(np.int16)
        part = folder / f"{seed}.part"
        with part.open("wb") as file:
            np.savez(file, hu=hu, **_shares(example.labels, shape)._asdict())
        part.rename(path)
    return path


def _shares(labels: NDArray[np.uint8], shape: Shape) -> Shares:
    first, second = np.zeros((2, *shape), np.uint8)
    most, next_most = np.zeros((2, *shape), np.float32)
    for label in range(len(NAMES)):
        share = resize(labels == label, shape, KINDS)
        leads = share > most
        follows = ~leads & (share > next_most)
        second[leads] = first[leads]
        next_most[leads] = most[leads]
        first[leads] = label
        most[leads] = share[leads]
        second[follows] = label
        next_most[follows] = share[follows]
    return Shares(first, second, np.rint(255 * next_most).astype(np.uint8))
