"""Prints the model's accuracy and speed in the service's engine: `python -m training.ct_chest.evaluate --data DATA`.

`--model FOLDER` evaluates another model than the repository's, on synthetic scans that the tests do not use.

DATA is the folder of TotalSegmentator's public test scans and its segmentations of them: chest_cta.nii.gz,
example_ct.nii.gz, example_seg_fast_force_split.nii.gz, example_ct_dicom, example_seg_dicom.nii.gz.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from inference_service.formats.nifti import read_nifti
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan
from inference_service.imaging.geometry import Volume
from training.ct_chest.evaluation.real import chest_cta, example_ct, example_dicom, padded, partial_scans, robust
from training.ct_chest.evaluation.scoring import MODEL, Figures, first_seed, synthetic, timed


def main() -> None:
    """Prints the synthetic scans' figures, and those of the real scans where `--data` is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the real scans")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of model.onnx and manifest.json")
    parser.add_argument("--healthy", type=int, default=16, help="synthetic scans of healthy patients")
    parser.add_argument(
        "--diseased", type=int, default=8, help="synthetic scans of patients whose bones and arteries may be diseased"
    )
    arguments = parser.parse_args()
    model = arguments.model
    sections: list[tuple[str, Figures]] = [
        (
            f"synthetic scans from seed {first_seed(model)} on, healthy",
            synthetic(arguments.healthy, model, healthy=True),
        ),
        ("the same, diseased", synthetic(arguments.diseased, model, healthy=False)),
        ("time", timed(model)),
    ]
    if arguments.data is not None:
        sections += _real(arguments.data, model)
    for title, figures in sections:
        print(title)  # noqa: T201
        for name, value in figures:
            print(f"  {name}: {value:.4f}", flush=True)  # noqa: T201


def _real(folder: Path, model: Path) -> list[tuple[str, Figures]]:
    cta, example, truth, dicom_truth = (
        _read(folder / f"{name}.nii.gz")
        for name in ("chest_cta", "example_ct", "example_seg_fast_force_split", "example_seg_dicom")
    )
    return [
        ("chest_cta", chest_cta(cta, model)),
        ("parts of chest_cta", partial_scans(cta, model)),
        ("chest_cta at 3×3×5 mm in padding", padded(cta, model)),
        ("example_ct", example_ct(example, truth, model)),
        ("example_ct_dicom", example_dicom(read_series(folder / "example_ct_dicom"), dicom_truth, model)),
        ("robust", robust(cta, model)),
    ]


def read_series(folder: Path) -> Volume:
    """The volume of a folder of DICOM files."""
    with TemporaryDirectory() as unpacked:
        return read_scan(folder, Path(unpacked), ReadLimits(2**30)).volume


def _read(path: Path) -> Volume:
    return read_nifti(path, ReadLimits(2**30)).volume


if __name__ == "__main__":
    main()
