"""Writes the phantoms as files: a data set in nnU-Net's raw format, and the scans to predict with their truth."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from references.datasets import FIRST_TEST_SEED, DataSet, Voxels
from references.phantoms import Affine, Labels, draw, varied

ENDING = ".nii.gz"


def write_data_set(data_set: DataSet, folder: Path) -> None:
    """Writes images, labels, `dataset.json` and, unless nnU-Net is to make it, the split."""
    images = folder / "imagesTr"
    truths = folder / "labelsTr"
    images.mkdir(parents=True)
    truths.mkdir()
    for seed, grid in varied(data_set.grid, range(data_set.size)):
        channels, labels = draw(data_set.draw(seed), grid, seed)
        if data_set.ignored_slices:
            middle = labels.shape[2] // 2
            labels[:, :, middle : middle + data_set.ignored_slices] = _ignored(data_set)
        for number, channel in enumerate(channels):
            _write(images / f"{_case(seed)}_{number:04}{ENDING}", channel, grid.affine, "int16")
        _write(truths / f"{_case(seed)}{ENDING}", labels, grid.affine)
    (folder / "dataset.json").write_text(json.dumps(_description(data_set), indent=2), encoding="utf-8")
    if data_set.splits != 5:
        (folder / "splits_final.json").write_text(json.dumps(_splits(data_set)), encoding="utf-8")


def write_tests(data_set: DataSet, folder: Path) -> dict[str, list[Path]]:
    """Writes the scans to predict to `scans/` and their labels to `truth/`; returns the files of each scan."""
    scans = folder / "scans"
    truths = folder / "truth"
    scans.mkdir(parents=True)
    truths.mkdir()
    files: dict[str, list[Path]] = {}
    for seed, (name, test) in enumerate(data_set.tests.items(), start=FIRST_TEST_SEED):
        channels, labels = draw(data_set.draw(seed), test.grid, seed)
        files[name] = [scans / f"{name}_{number:04}{ENDING}" for number in range(len(channels))]
        for path, channel in zip(files[name], channels, strict=True):
            if test.zero_border:
                channel[: test.zero_border] = 0
                channel[-test.zero_border :] = 0
            _write(path, channel, test.grid.affine, test.voxels)
        _write(truths / f"{name}{ENDING}", labels, test.grid.affine)
    return files


def read_labels(path: Path) -> Labels:
    """The labels of a file, in the axes of the file."""
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj).astype(np.uint8)


def _case(seed: int) -> str:
    return f"case_{seed:03}"


def _ignored(data_set: DataSet) -> int:
    value = data_set.labels["ignore"]
    if not isinstance(value, int):
        raise TypeError(f"expected one value for ignore, got {value}")
    return value


def _description(data_set: DataSet) -> dict[str, object]:
    description: dict[str, object] = {
        "channel_names": {str(number): name for number, name in enumerate(data_set.channels)},
        "labels": dict(data_set.labels),
        "numTraining": data_set.size,
        "file_ending": ENDING,
    }
    if data_set.regions_class_order:
        description["regions_class_order"] = list(data_set.regions_class_order)
    if data_set.reader:
        description["overwrite_image_reader_writer"] = data_set.reader
    return description


def _splits(data_set: DataSet) -> list[dict[str, list[str]]]:
    cases = [_case(seed) for seed in range(data_set.size)]
    held_out = [cases[number :: data_set.splits] for number in range(data_set.splits)]
    return [{"train": [case for case in cases if case not in val], "val": val} for val in held_out]


def _write(path: Path, voxels: NDArray[np.generic], affine: Affine, kind: Voxels | None = None) -> None:
    stored = np.rint(voxels).astype(np.int16) if kind == "int16" else voxels
    image = nib.Nifti1Image(stored, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, path)
