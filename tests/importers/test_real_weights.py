"""Networks with real weights, imported by the short configs of the docs, against pipelines written after their sources.

Brainchop's MeshNets lie in the folder of shared data, and deepbet's networks in its wheel, which `make importtest`
downloads.
"""

import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import REPOSITORY
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.core.settings import Settings
from inference_service.importers.model_import import Imported
from inference_service.segmentation.local_run import segment_locally

Import = Callable[..., Imported]
Image = NDArray[np.float32]
DATA = REPOSITORY.parent / "shared" / "data"
CONFIGS = REPOSITORY / "docs" / "short-configs"
BOX = 256
"""Voxels along each axis that all three networks get."""


@pytest.fixture(scope="session")
def t1() -> Path:
    """A T1 image of a head without its skull, 197 × 233 × 189 voxels of 1 mm."""
    path = DATA / "mni152" / "t1.nii.gz"
    if not path.is_file():
        pytest.skip(f"T1 image not found: {path}")
    return path


@pytest.fixture(scope="session")
def meshnets() -> Path:
    """The folder of brainchop's networks."""
    folder = DATA / "onnx"
    if not folder.is_dir():
        pytest.skip(f"ONNX networks not found: {folder}")
    return folder


@pytest.fixture(scope="session")
def deepbet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of deepbet's networks, unpacked from its wheel, none of whose code is installed."""
    wheels = sorted((Path(sys.prefix) / "wheels").glob("deepbet-*.whl"))
    if not wheels:
        pytest.skip("deepbet's wheel not found: `make importtest` downloads it")
    folder = tmp_path_factory.mktemp("deepbet")
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in ("bbox_model.pt", "model.pt"):
            (folder / name).write_bytes(wheel.read(f"data/models/{name}"))
    return folder


def segment(imported: Imported, scan: Path, folder: Path) -> NDArray[np.unsignedinteger]:
    """Returns the mask of an imported model, on the scan's grid."""
    settings = Settings(models_path=imported.folder.parent.parent, onnx_providers=["CPUExecutionProvider"])
    target = folder / "mask.nii.gz"
    segment_locally(
        scan, target, settings, model=imported.manifest.name, version=None, progress=lambda stage, share: None
    )
    return np.asarray(nibabel.nifti1.load(target).dataobj)


def check_volumes(
    own: NDArray[np.generic], source: NDArray[np.generic], volumes_ml: dict[int, tuple[int, int]]
) -> None:
    """Compares masks of 1 mm³ voxels, and the volume of each label with the range in which it is plausible."""
    for label, (least_ml, most_ml) in volumes_ml.items():
        own_ml, source_ml = (np.count_nonzero(mask == label) / 1000 for mask in (own, source))
        assert least_ml < source_ml < most_ml
        assert own_ml == pytest.approx(source_ml, rel=0.005)


def in_box(image: Image) -> tuple[Image, tuple[slice, ...]]:
    """Puts an image with axes RAS into brainchop's box with axes LIA; returns the place of the image in it too."""
    turned = image[::-1, :, ::-1].transpose(0, 2, 1)
    starts = [(BOX - size) // 2 for size in turned.shape]
    place = tuple(slice(start, start + size) for start, size in zip(starts, turned.shape, strict=True))
    box = np.zeros((BOX, BOX, BOX), dtype=np.float32)
    box[place] = turned
    return box, place


def run_brainchop(network: Path, scan: Path, scale: Callable[[Image], Image]) -> NDArray[np.intp]:
    """The labels of a MeshNet: the whole box at once, and the highest channel of each voxel."""
    box, place = in_box(np.asarray(nibabel.nifti1.load(scan).dataobj, dtype=np.float32))
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": scale(box)[np.newaxis, np.newaxis]})
    turned: NDArray[np.intp] = logits[0].argmax(axis=0)[place]
    return turned.transpose(0, 2, 1)[::-1, :, ::-1]


def by_extremes(box: Image) -> Image:
    scaled: Image = (box - box.min()) / (box.max() - box.min())
    return scaled


def by_quantiles(box: Image) -> Image:
    low, high = np.quantile(box, [0.05, 0.95]).astype(np.float32)
    scaled: Image = (box - low) / (high - low)
    return scaled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "config", "scale", "volumes_ml"),
    [
        ("mindgrab.onnx", "mindgrab.json", by_extremes, {1: (1500, 2100)}),
        ("model20chan3cls.onnx", "white-and-grey-matter.json", by_quantiles, {1: (600, 1100), 2: (600, 1100)}),
    ],
)
def test_a_meshnet_segments_as_brainchop_does(
    network: str,
    config: str,
    scale: Callable[[Image], Image],
    volumes_ml: dict[int, tuple[int, int]],
    meshnets: Path,
    t1: Path,
    run_import: Import,
    tmp_path: Path,
) -> None:
    imported = run_import(meshnets / network, config=CONFIGS / config)
    own, source = segment(imported, t1, tmp_path), run_brainchop(meshnets / network, t1, scale)
    check_volumes(own, source, volumes_ml)
    assert np.mean(own == source) > 0.9999


def nearest(image: Image, shape: Sequence[int]) -> Image:
    """Resamples an image of the same extent to another number of voxels, by nearest neighbour."""
    for axis, (old, new) in enumerate(zip(image.shape, shape, strict=True)):
        image = image.take(((np.arange(new) + 0.5) * old / new).astype(int), axis)
    return image


def largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    found, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(found.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = found == sizes.argmax()
    return kept


def run_deepbet(folder: Path, scan: Path) -> NDArray[np.bool_]:
    """The brain by deepbet's steps: a coarse box, and the network on the image within it.

    Args:
        folder: The networks.
        scan: The image, with axes RAS.
    """
    image = np.asarray(nibabel.nifti1.load(scan).dataobj, dtype=np.float32)
    bounds: Any = None

    def brain(name: str, size: int, image: Image) -> Image:
        nonlocal bounds
        values = nearest(image, [size] * 3)
        if bounds is None:  # Those of the whole image count for both networks.
            bounds = np.quantile(values, [0.005, 0.995])
        values = np.clip((values - bounds[0]) / (bounds[1] - bounds[0]), 0, 1)
        values = (values - values.mean()) / values.std(ddof=1) * 0.226 + 0.449
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch calls TorchScript deprecated
            network = torch.jit.load(str(folder / name))
        with torch.inference_mode():
            probabilities: Image = network(torch.from_numpy(values.astype(np.float32))[None, None])[0, 1].numpy()
        return probabilities

    coarse = largest(brain("bbox_model.pt", 128, image) > 0.5)
    box = []
    for axis, size in enumerate(image.shape):
        across = tuple(other for other in range(3) if other != axis)
        planes = np.flatnonzero(coarse.mean(axis=across) > 0.02)
        centre, extent = (planes[-1] + 1 + planes[0]) / 2 * size / 128, (planes[-1] + 1 - planes[0]) * size / 128
        centre, extent = np.round(centre), np.round(1.2 * extent)
        box.append(slice(max(0, int(centre - extent / 2)), min(size, int(centre + extent / 2))))
    inside = image[tuple(box)]
    mask = np.zeros(image.shape, dtype=bool)
    mask[tuple(box)] = largest(nearest(brain("model.pt", BOX, inside), inside.shape) > 0.5)
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(mask)
    return filled


@pytest.mark.slow
def test_deepbet_finds_its_brain(deepbet: Path, t1: Path, run_import: Import, tmp_path: Path) -> None:
    run_import(deepbet / "bbox_model.pt", name="deepbet-box", config=CONFIGS / "deepbet-box.json")
    imported = run_import(deepbet / "model.pt", name="deepbet", config=CONFIGS / "deepbet.json")
    own, source = segment(imported, t1, tmp_path), run_deepbet(deepbet, t1)
    check_volumes(own, source, {1: (1500, 2100)})
    # The box around the coarse brain is rounded in another way, by which voxels at the surface differ.
    assert np.mean(own == source) > 0.996
