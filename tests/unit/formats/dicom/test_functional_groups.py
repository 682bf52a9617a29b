"""Positions of frames in single-frame and multi-frame instances."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import (
    CT_INTERCEPT,
    Stack,
    affine_of,
    oblique_rotation,
    phantom,
    regular_stack,
    save,
    set_stored_values,
    with_attribute,
    write_enhanced,
    write_series,
)
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    XRay3DCraniofacialImageStorage,
)

from inference_service.core.errors import (
    InconsistentGeometry,
    InputCorrupt,
    InputError,
    NotAVolume,
)
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_multi_frame_instance_is_a_series(tmp_path: Path, read: Read, modality: str, shared: bool) -> None:
    stack = regular_stack(row=oblique_rotation()[:, 0], column=oblique_rotation()[:, 1])
    scan = read(write_enhanced(tmp_path / "object", stack, modality=modality, shared=shared))
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels, strict=True)
    np.testing.assert_allclose(scan.volume.affine, affine_of(stack), atol=1e-9)
    assert scan.modality == modality
    assert sorted(slice_.frame.index for slice_ in scan.slices) == list(range(6))


def test_the_thickness_of_a_single_frame_is_read_from_its_functional_group(tmp_path: Path, read: Read) -> None:
    path = write_enhanced(tmp_path / "in", regular_stack(phantom()[:, :, :1]))
    assert read(path).volume.spacing_mm[2] == 7


@pytest.mark.parametrize(
    ("name", "value"), [("RescaleSlope", "1e39"), ("RescaleIntercept", "-1e38"), ("RescaleSlope", "1e15")]
)
def test_a_rescaling_beyond_float32_is_refused(tmp_path: Path, read: Read, name: str, value: str) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute(name, value, only=2))
    with pytest.raises(InputCorrupt, match="rescale slope"):
        read(tmp_path / "in")


@pytest.mark.parametrize("thickness", [[3, 3], "nan", ""])
def test_an_invalid_slice_thickness_is_ignored(tmp_path: Path, read: Read, thickness: object) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("SliceThickness", thickness))
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels, regular_stack().voxels)


def write_multi_frame(
    path: Path, stack: Stack, change: Callable[[Dataset], object], *, sop: str = CTImageStorage
) -> Path:
    """A multi-frame image that states the position of its first frame alone."""
    folder = path.with_name("single")
    dataset = pydicom.dcmread(write_series(folder, stack)[0])
    shutil.rmtree(folder)
    dataset.SOPClassUID = sop
    dataset.NumberOfFrames = stack.voxels.shape[2]
    dataset.SpacingBetweenSlices = 2.5
    set_stored_values(dataset, (stack.voxels - CT_INTERCEPT).astype(np.uint16).transpose(2, 1, 0))
    change(dataset)
    return save(dataset, path)


ASSUMED = "the others were placed along the normal of its plane, 2.5 mm apart as SpacingBetweenSlices states"
MULTI_FRAME_CLASSES = [
    CTImageStorage, EnhancedCTImageStorage, XRay3DCraniofacialImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
]  # fmt: skip


@pytest.mark.parametrize("sop", MULTI_FRAME_CLASSES)
@pytest.mark.parametrize("oblique", [False, True])
def test_frames_without_functional_groups_are_stacked_with_a_warning(
    tmp_path: Path, read: Read, sop: str, *, oblique: bool
) -> None:
    rotation = oblique_rotation() if oblique else np.eye(3)
    stack = regular_stack(row=rotation[:, 0], column=rotation[:, 1])
    scan = read(write_multi_frame(tmp_path / "in", stack, lambda dataset: None, sop=sop))
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels)
    np.testing.assert_allclose(scan.volume.affine, affine_of(stack), atol=1e-6)
    (warning,) = scan.warnings
    assert warning.code == WarningCode.FRAME_POSITIONS_DERIVED
    assert ASSUMED in warning.message


def test_a_negative_spacing_stacks_frames_the_other_way(tmp_path: Path, read: Read) -> None:
    def change(dataset: Dataset) -> None:
        dataset.SpacingBetweenSlices = -2.5

    scan = read(write_multi_frame(tmp_path / "in", regular_stack(), change))
    np.testing.assert_array_equal(scan.volume.voxels, phantom()[:, :, ::-1])
    assert scan.volume.affine[2, 3] == -700 - 5 * 2.5


def test_shared_functional_groups_may_state_the_spacing(tmp_path: Path, read: Read) -> None:
    def change(dataset: Dataset) -> None:
        measures = Dataset()
        measures.PixelSpacing, measures.SpacingBetweenSlices = dataset.PixelSpacing, 2.5
        shared = Dataset()
        shared.PixelMeasuresSequence = [measures]
        dataset.SharedFunctionalGroupsSequence = [shared]
        dataset.PerFrameFunctionalGroupsSequence = [Dataset() for _ in range(dataset.NumberOfFrames)]
        del dataset.PixelSpacing, dataset.SpacingBetweenSlices

    scan = read(write_multi_frame(tmp_path / "in", regular_stack(), change))
    np.testing.assert_array_equal(scan.volume.voxels, phantom())
    np.testing.assert_allclose(scan.volume.affine, affine_of(regular_stack()))


def without_spacing(dataset: Dataset) -> None:
    del dataset.SpacingBetweenSlices


def with_zero_spacing(dataset: Dataset) -> None:
    dataset.SpacingBetweenSlices = 0


def in_time(dataset: Dataset) -> None:
    dataset.FrameIncrementPointer = Tag("FrameTime")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (without_spacing, NotAVolume, "or SpacingBetweenSlices"),
        (with_zero_spacing, InconsistentGeometry, "SpacingBetweenSlices of a multi-frame image is 0"),
        (in_time, InconsistentGeometry, "follow each other in time, as FrameIncrementPointer states"),
    ],
)
def test_frames_whose_distance_is_unknown_are_refused(
    tmp_path: Path, read: Read, change: Callable[[Dataset], object], error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(write_multi_frame(tmp_path / "in", regular_stack(), change))


def test_a_multi_frame_secondary_capture_is_left_out_beside_a_series(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack())
    other = replace(regular_stack(), series_uid="1.2.3.5")
    capture = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    write_multi_frame(tmp_path / "in" / "capture", other, lambda dataset: None, sop=capture)
    assert read(tmp_path / "in").set_aside == {"secondary_capture": 1}


def legacy_converted(folder: Path, paths: Sequence[Path]) -> Path:
    """Converts a series of single-frame CT images to one multi-frame image."""
    images = [pydicom.dcmread(path) for path in paths]
    for image in images:
        image.StudyInstanceUID, image.StudyID, image.StudyDate, image.StudyTime = "1.2.1", "1", "20240102", "101010"
        image.PatientSex = image.ReferringPhysicianName = image.Laterality = image.Manufacturer = ""
    converted = LegacyConvertedEnhancedCTImage(images, "1.2.7", 7, "1.2.7.1", 1)
    return save(converted, folder / "converted")


@pytest.mark.parametrize(
    ("keyword", "converted"),
    [
        ("AcquisitionNumber", "FrameAcquisitionNumber"),
        ("TriggerTime", "TriggerTime"),
        ("ConvolutionKernel", "ConvolutionKernel"),
        ("ScanOptions", "ScanOptions"),
    ],
)
def test_a_legacy_converted_image_has_the_attributes_of_its_sources(
    tmp_path: Path, read: Read, keyword: str, converted: str
) -> None:
    stack = regular_stack()
    paths = []
    for number in (1, 2):
        phase = replace(stack, voxels=stack.voxels + 10 * number)

        def change(k: int, dataset: Dataset, number: int = number) -> None:
            dataset.SOPInstanceUID = f"1.2.3.{number}.{k}"
            setattr(dataset, keyword, str(number))

        paths += write_series(tmp_path / str(number), phase, change=change)
    path = legacy_converted(tmp_path, paths)
    with pytest.raises(NotAVolume, match="the series is 2 volumes") as caught:
        read(path)
    assert [group.slices for group in caught.value.groups] == [6, 6]
    scan = read(path, select={converted: 2})
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels + 20)
    np.testing.assert_allclose(scan.volume.affine, affine_of(stack), atol=1e-9)


def test_interleaved_frames_of_a_legacy_converted_image_are_refused(tmp_path: Path, read: Read) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.ConvolutionKernel = ["B31f", "B70f"][k % 2]

    path = legacy_converted(tmp_path, write_series(tmp_path / "in", regular_stack(), change=change))
    with pytest.raises(InconsistentGeometry, match="ConvolutionKernel alternates"):
        read(path)
