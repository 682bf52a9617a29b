"""The scan that a request asks for: on the grid of the mask, with the values that were read, whatever the input was."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from dicom_files import PATIENT, Stack, phantom, regular_stack, write_series
from numpy.typing import NDArray

from inference_service.contract.input_options import InputOptions
from inference_service.contract.report import Report
from inference_service.contract.result_files import MASK_FILE, SCAN_FILE
from inference_service.core.execution import ExecutionOptions
from inference_service.core.files import Checksum
from inference_service.engine.model_registry import Model
from inference_service.engine.session_cache import SessionCache
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan
from inference_service.segmentation.pipeline import ModelRun, SegmentOptions, segment_file
from inference_service.segmentation.resources import StageMonitor

MakeAffine = Callable[[str, Sequence[float]], NDArray[np.float64]]
LIMITS = ReadLimits(10**6)
OPTIONS = InputOptions(tolerate=("uneven_spacing", "gantry_tilt", "analyze_orientation"), modality_check=False)
# Fields of a header in which a scan and its mask may differ.
OF_VALUES = {"datatype", "bitpix"}
SPACING_MM = (0.75, 1.25, 2.5)


def write_nifti(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> Path:
    image = nibabel.Nifti2Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"Mueller^Hans"
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=4)
    nibabel.save(image, path)
    return path


def oblique(folder: Path, affine: NDArray[np.float64]) -> Path:
    voxels = phantom().astype(np.float32) + np.float32(0.25)
    voxels[0, 0, 0] = np.nan
    return write_nifti(folder / "scan.nii.gz", voxels, affine)


def sheared(folder: Path, affine: NDArray[np.float64]) -> Path:
    return write_nifti(folder / "scan.nii", phantom(), affine @ np.array([[1, 0, 0.3, 0], *np.eye(4)[1:]]))


def series(folder: Path, stack: Stack) -> Path:
    write_series(folder / "in", stack)
    return folder / "in"


def without_a_slice(stack: Stack) -> Stack:
    kept = [0, 1, 2, 4, 5]
    return Stack(stack.voxels[:, :, kept], stack.row, stack.column, stack.pixel_mm, stack.positions_mm[kept])


def by_simpleitk(path: Path, affine: NDArray[np.float64]) -> Path:
    image = SimpleITK.GetImageFromArray(phantom().transpose())
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path))
    return path


def analyze(folder: Path) -> Path:
    (folder / "in").mkdir()
    nibabel.save(nibabel.AnalyzeImage(phantom(), np.diag([-1.0, 1.5, 2.0, 1.0])), folder / "in" / "scan.hdr")
    return folder / "in"


def segment(source: Path, target: Path, model: Model, *, scan: bool) -> Report:
    return segment_file(
        source,
        target,
        ModelRun(model, ExecutionOptions(("CPUExecutionProvider",), threads=1), SessionCache()),
        limits=LIMITS,
        options=SegmentOptions(OPTIONS, scan=scan),
        monitor=StageMonitor(),
    )


INPUTS: dict[str, Callable[[Path, NDArray[np.float64]], Path]] = {
    "oblique NIfTI with fill values": oblique,
    "sheared NIfTI": sheared,
    "NRRD": lambda folder, affine: by_simpleitk(folder / "scan.nrrd", affine),
    "MetaImage": lambda folder, affine: by_simpleitk(folder / "scan.mha", affine),
    "Analyze": lambda folder, _: analyze(folder),
    "DICOM": lambda folder, _: series(folder, regular_stack()),
    "DICOM, tilted": lambda folder, _: series(folder, regular_stack(drift_mm=(0, 1.25, 0))),
    "DICOM, uneven": lambda folder, _: series(folder, without_a_slice(regular_stack())),
    "DICOM, uneven and tilted": lambda folder, _: series(folder, without_a_slice(regular_stack(drift_mm=(0, 1.25, 0)))),
}


@pytest.mark.parametrize("write", INPUTS.values(), ids=INPUTS)
def test_the_scan_lies_on_the_grid_of_the_mask_with_the_values_that_were_read(
    tmp_path: Path,
    make_model: Callable[..., Model],
    oblique_affine: MakeAffine,
    write: Callable[[Path, NDArray[np.float64]], Path],
) -> None:
    source = write(tmp_path, oblique_affine("PLI", SPACING_MM))
    target = tmp_path / "out"
    target.mkdir()
    model = make_model(orientation="LPS", spacing_mm=(1.0, 1.0, 2.0))
    report = segment(source, target, model, scan=True)
    assert report.files == [MASK_FILE, "preview.png", SCAN_FILE]
    assert report.checksums[SCAN_FILE] == Checksum.of_file(target / SCAN_FILE)
    mask = nibabel.load(target / MASK_FILE)
    scan = nibabel.load(target / SCAN_FILE)
    assert isinstance(mask, nibabel.Nifti1Image)
    assert isinstance(scan, nibabel.Nifti1Image)
    assert type(scan) is type(mask)
    for field in scan.header.structarr.dtype.names:
        if field not in OF_VALUES:
            assert scan.header[field].tobytes() == mask.header[field].tobytes(), field
    read = read_scan(source, tmp_path, LIMITS, input_options=OPTIONS).volume
    np.testing.assert_allclose(scan.affine, read.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asanyarray(scan.dataobj), read.voxels)
    assert scan.get_data_dtype() == ("f4" if write is oblique else "i2")
    content = scan.header.structarr.tobytes()
    assert not any(text.encode() in content for text in (PATIENT, "Mueller"))


def test_the_scan_changes_no_other_file(
    tmp_path: Path, make_model: Callable[..., Model], oblique_affine: MakeAffine
) -> None:
    source = oblique(tmp_path, oblique_affine("PLI", SPACING_MM))
    model = make_model(orientation="LPS", spacing_mm=(1.0, 1.0, 2.0))
    hashes = []
    for scan in (False, True):
        target = tmp_path / str(scan)
        target.mkdir()
        segment(source, target, model, scan=scan)
        assert (target / SCAN_FILE).exists() is scan
        hashes.append([hashlib.sha256((target / name).read_bytes()).digest() for name in (MASK_FILE, "preview.png")])
    assert hashes[0] == hashes[1]
