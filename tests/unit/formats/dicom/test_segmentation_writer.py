import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_files import (
    PATIENT,
    PATIENT_ID,
    Stack,
    axis_directions,
    oblique_rotation,
    phantom,
    read_segmentation,
    regular_stack,
    with_attribute,
    without_attributes,
    write_enhanced,
    write_mr,
    write_series,
)
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian

from inference_service.contract.manifest import Manifest
from inference_service.contract.palette import label_colour
from inference_service.contract.result_files import SegmentationType
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.dicom.segmentation_writer import (
    UidSeed,
    WrittenSegmentation,
    write_segmentation,
)
from inference_service.formats.dicom.source_references import SourceSeries
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

SEGMENTATION_TYPES: tuple[SegmentationType, ...] = ("binary", "labelmap")
UID_SEED = UidSeed(UUID(int=1), "a scan")
# Rounding of a decimal string to the 16 characters that DICOM allows; test files have longer ones.
SIXTEEN_CHARACTERS = 1e-9
Mask = NDArray[np.unsignedinteger]
MakeManifest = Callable[..., Manifest]


@pytest.fixture(autouse=True)
def suppressed_warnings() -> Iterator[None]:
    """Suppresses warnings: test files lack attributes that the standard requires."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def source_of_mask(scan: Scan) -> SourceSeries:
    return SourceSeries(scan.slices, evenly_spaced=scan.evenly_spaced is None)


@pytest.fixture
def make_segmentation(tmp_path: Path, make_manifest: MakeManifest) -> Callable[..., highdicom.seg.Segmentation]:
    """Writes a mask as a DICOM Segmentation, and reads it."""

    def make(
        mask: Mask, scan: Scan, *, segmentation_type: SegmentationType = "binary", **fields: object
    ) -> highdicom.seg.Segmentation:
        manifest = make_manifest(**fields)
        write_segmentation(
            tmp_path / "seg.dcm",
            mask,
            source_of_mask(scan),
            manifest,
            segmentation_type=segmentation_type,
            uid_seed=UID_SEED,
        )
        return read_segmentation(tmp_path / "seg.dcm")

    return make


Make = Callable[..., highdicom.seg.Segmentation]
Read = Callable[..., Scan]


def labels_of(voxels: NDArray[np.generic]) -> Mask:
    """Label 1 for the block and 3 for the L in it; the first slice has no label, and no voxel is 2."""
    return np.asfortranarray(np.select([voxels == -100, voxels == 60], [1, 3]).astype(np.uint8))


def by_instance(seg: highdicom.seg.Segmentation, scan: Scan) -> NDArray[np.generic]:
    """Segment numbers on the scan's slices, shape (columns, rows, slices)."""
    uids = [slice_.instance.sop_instance_uid for slice_ in scan.slices]
    planes = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    return np.asarray(planes.transpose(2, 1, 0))


def frames_of(seg: highdicom.seg.Segmentation) -> list[Dataset]:
    return list(seg.PerFrameFunctionalGroupsSequence)


def source_of(frame: Dataset) -> Dataset:
    (derivation,) = frame.DerivationImageSequence
    (source,) = derivation.SourceImageSequence
    return source  # type: ignore[no-any-return]


def position_of(frame: Dataset) -> list[float]:
    return [float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient]


def assert_frames_lie_on_their_sources(seg: highdicom.seg.Segmentation, paths: Sequence[Path]) -> None:
    sources = {str(source.SOPInstanceUID): source for source in map(pydicom.dcmread, paths)}
    for frame in frames_of(seg):
        source = sources[source_of(frame).ReferencedSOPInstanceUID]
        assert source_of(frame).ReferencedSOPClassUID == source.SOPClassUID
        assert position_of(frame) == pytest.approx(list(source.ImagePositionPatient), abs=SIXTEEN_CHARACTERS)
    first = next(iter(sources.values()))
    (shared,) = seg.SharedFunctionalGroupsSequence
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert list(orientation) == pytest.approx(list(first.ImageOrientationPatient), abs=SIXTEEN_CHARACTERS)
    assert shared.PixelMeasuresSequence[0].PixelSpacing == first.PixelSpacing
    assert (seg.FrameOfReferenceUID, seg.Rows, seg.Columns) == (
        first.FrameOfReferenceUID,
        first.Rows,
        first.Columns,
    )
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    for references in (series.ReferencedInstanceSequence, seg.SourceImageSequence):
        assert {item.ReferencedSOPInstanceUID for item in references} == set(sources)


@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize(("row", "column"), axis_directions())
def test_a_mask_is_read_back_in_every_orientation(
    tmp_path: Path,
    read: Read,
    make_segmentation: Make,
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    oblique: bool,
) -> None:
    turn = oblique_rotation() if oblique else np.eye(3)
    paths = write_series(tmp_path / "in", regular_stack(row=turn @ row, column=turn @ column))
    scan = read(tmp_path / "in")
    mask = labels_of(scan.volume.voxels)
    seg = make_segmentation(mask, scan)
    np.testing.assert_array_equal(by_instance(seg, scan), mask)
    assert_frames_lie_on_their_sources(seg, paths)
    # Two segments on five and three of six slices.
    assert seg.NumberOfFrames == 5 + 3
    volume = seg.get_volume(combine_segments=True)
    # Its axes are slices, rows and columns, its world LPS+.
    to_ours = np.diag([-1.0, -1, 1, 1]) @ volume.affine @ np.eye(4)[[2, 1, 0, 3]]
    first = to_ours @ np.append(np.zeros(3), 1)
    where = np.linalg.solve(scan.volume.affine, first)[:3]
    np.testing.assert_allclose(where, np.rint(where), atol=1e-6)
    np.testing.assert_allclose(np.abs(to_ours[:3, :3]), np.abs(scan.volume.affine[:3, :3]), atol=1e-6)


def test_rounded_directions_give_a_volume_to_readers(tmp_path: Path, read: Read, make_segmentation: Make) -> None:
    write_series(tmp_path / "in", regular_stack(row=np.array([1, 0, 0]), column=np.array([1e-3, 1, 0])))
    scan = read(tmp_path / "in")
    mask = labels_of(scan.volume.voxels)
    seg = make_segmentation(mask, scan)
    np.testing.assert_array_equal(by_instance(seg, scan), mask)
    assert seg.get_volume(combine_segments=True).array.any()


@pytest.mark.parametrize("segmentation_type", SEGMENTATION_TYPES)
@pytest.mark.parametrize("values", [(0, 1, 2, 3), (0, 3, 2, 1), (3, 1, 2)])
def test_segments_are_numbered_in_the_order_of_label_values(
    tmp_path: Path, read: Read, make_segmentation: Make, segmentation_type: SegmentationType, values: Sequence[int]
) -> None:
    write_series(tmp_path / "in", regular_stack())
    scan = read(tmp_path / "in")
    mask = labels_of(scan.volume.voxels)
    activation = "softmax" if 0 in values else "sigmoid"
    seg = make_segmentation(mask, scan, segmentation_type=segmentation_type, values=values, activation=activation)
    np.testing.assert_array_equal(by_instance(seg, scan), mask)
    assert seg.segmentation_type.value == segmentation_type.upper()
    names = {item.SegmentNumber: item.SegmentLabel for item in seg.SegmentSequence if item.SegmentNumber}
    assert names == {1: "label 1", 2: "label 2", 3: "label 3"}


def test_frames_of_a_tilted_stack_lie_on_its_slices(tmp_path: Path, read: Read, make_segmentation: Make) -> None:
    paths = write_series(tmp_path / "in", regular_stack(drift_mm=(0.3, -1.1, 0)))
    scan = read(tmp_path / "in", tolerate=("gantry_tilt",))
    mask = labels_of(scan.volume.voxels)
    seg = make_segmentation(mask, scan)
    np.testing.assert_array_equal(by_instance(seg, scan), mask)
    assert_frames_lie_on_their_sources(seg, paths)
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices == 2.5


@pytest.mark.parametrize("drift_mm", [(0, 0, 0), (0, 1.25, 0)], ids=["straight", "tilted"])
def test_uneven_slices_get_the_labels_of_the_nearest_even_planes(
    tmp_path: Path, read: Read, make_segmentation: Make, drift_mm: Sequence[float]
) -> None:
    stack = regular_stack(drift_mm=drift_mm)
    kept = [0, 1, 2, 4, 5]
    paths = write_series(
        tmp_path / "in",
        Stack(stack.voxels[:, :, kept], stack.row, stack.column, stack.pixel_mm, stack.positions_mm[kept]),
    )
    scan = read(tmp_path / "in", tolerate=("uneven_spacing", "gantry_tilt"))
    assert scan.evenly_spaced is not None
    on_slices = scan.evenly_spaced.restore_mask(labels_of(scan.volume.voxels))
    np.testing.assert_array_equal(on_slices, labels_of(stack.voxels[:, :, kept]))
    seg = make_segmentation(on_slices, scan)
    np.testing.assert_array_equal(by_instance(seg, scan), on_slices)
    assert_frames_lie_on_their_sources(seg, paths)
    assert "SpacingBetweenSlices" not in seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("segmentation_type", SEGMENTATION_TYPES)
def test_frames_of_a_multi_frame_instance_are_referenced_by_number(
    tmp_path: Path, read: Read, make_segmentation: Make, modality: str, segmentation_type: SegmentationType
) -> None:
    path = write_enhanced(tmp_path / "in", regular_stack(), modality=modality)
    scan = read(path)
    mask = labels_of(scan.volume.voxels)
    seg = make_segmentation(mask, scan, segmentation_type=segmentation_type)
    source = pydicom.dcmread(path)
    for frame in frames_of(seg):
        item = source_of(frame)
        assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (
            source.SOPClassUID,
            source.SOPInstanceUID,
        )
        theirs = source.PerFrameFunctionalGroupsSequence[item.ReferencedFrameNumber - 1]
        assert position_of(frame) == position_of(theirs)
    numbers = [slice_.frame.index + 1 for slice_ in scan.slices]
    planes = seg.get_pixels_by_source_frame(
        source.SOPInstanceUID, numbers, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(planes.transpose(2, 1, 0), mask)
    assert len(seg.SourceImageSequence) == 1


def test_a_series_of_several_multi_frame_instances_is_referenced(
    tmp_path: Path, read: Read, make_segmentation: Make
) -> None:
    stack = regular_stack()
    for number, part in enumerate((slice(0, 4), slice(4, 6))):
        write_enhanced(
            tmp_path / "in" / str(number),
            replace(
                stack,
                voxels=stack.voxels[:, :, part],
                positions_mm=stack.positions_mm[part],
                changes={"SOPInstanceUID": f"1.2.3.4.{number + 1}"},
            ),
        )
    scan = read(tmp_path / "in")
    mask = labels_of(scan.volume.voxels)
    seg = make_segmentation(mask, scan)
    found = {tuple(position_of(frame)): source_of(frame) for frame in frames_of(seg)}
    for slice_ in scan.slices[1:]:
        item = found[slice_.frame.position_mm]
        assert item.ReferencedSOPInstanceUID == slice_.instance.sop_instance_uid
        assert item.ReferencedFrameNumber == slice_.frame.index + 1
    assert len(seg.SourceImageSequence) == 2


def test_only_the_selected_instances_are_referenced(tmp_path: Path, read: Read, make_segmentation: Make) -> None:
    for number in (1, 2):

        def change(k: int, dataset: Dataset, number: int = number) -> None:
            dataset.SOPInstanceUID = f"1.2.3.4.{number}.{k}"
            dataset.TemporalPositionIdentifier = number

        write_series(tmp_path / "in" / str(number), regular_stack(), change=change)
    scan = read(tmp_path / "in", select={"TemporalPositionIdentifier": 2})
    seg = make_segmentation(labels_of(scan.volume.voxels), scan)
    series = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    references = [*seg.SourceImageSequence, *series, *map(source_of, frames_of(seg))]
    assert {item.ReferencedSOPInstanceUID for item in references} == {f"1.2.3.4.2.{k}" for k in range(6)}
    assert (len(seg.SourceImageSequence), len(series)) == (6, 6)


def test_only_the_selected_frames_are_referenced(tmp_path: Path, read: Read, make_segmentation: Make) -> None:
    stack = regular_stack()
    both = replace(
        stack,
        voxels=np.concatenate([stack.voxels, stack.voxels], axis=2),
        positions_mm=np.concatenate([stack.positions_mm, stack.positions_mm + np.array([0, 0, 100])]),
    )
    path = write_enhanced(tmp_path / "in", both)
    dataset = pydicom.dcmread(path)
    for item in dataset.PerFrameFunctionalGroupsSequence:
        content = Dataset()
        content.FrameAcquisitionNumber = 1 + int(item.PlanePositionSequence[0].ImagePositionPatient[2] > -650)
        item.FrameContentSequence = [content]
    dataset.save_as(path)
    scan = read(path, select={"FrameAcquisitionNumber": 2})
    seg = make_segmentation(labels_of(scan.volume.voxels), scan)
    selected = sorted(slice_.frame.index + 1 for slice_ in scan.slices)
    assert len(selected) == 6
    assert list(seg.SourceImageSequence[0].ReferencedFrameNumber) == selected
    assert {source_of(frame).ReferencedFrameNumber for frame in frames_of(seg)} <= set(selected)
    for frame in frames_of(seg):
        theirs = dataset.PerFrameFunctionalGroupsSequence[source_of(frame).ReferencedFrameNumber - 1]
        assert position_of(frame) == position_of(theirs)


@pytest.mark.parametrize("segmentation_type", SEGMENTATION_TYPES)
def test_a_single_slice_gives_one_frame(
    tmp_path: Path, read: Read, make_segmentation: Make, segmentation_type: SegmentationType
) -> None:
    paths = write_series(tmp_path / "in", regular_stack(phantom()[:, :, 3:4]))
    scan = read(tmp_path / "in")
    mask = labels_of(scan.volume.voxels)
    seg = make_segmentation(mask, scan, segmentation_type=segmentation_type)
    np.testing.assert_array_equal(by_instance(seg, scan), mask)
    assert_frames_lie_on_their_sources(seg, paths)
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 7
    assert seg.get_volume(combine_segments=True).spacing[0] == 7


def test_monochrome1_and_mr_series_are_segmented(tmp_path: Path, read: Read, make_segmentation: Make) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("PhotometricInterpretation", "MONOCHROME1"))
    write_mr(tmp_path / "mr", regular_stack())
    for name in ("in", "mr"):
        scan = read(tmp_path / name)
        mask = labels_of(phantom())
        seg = make_segmentation(mask, scan)
        np.testing.assert_array_equal(by_instance(seg, scan), mask)
        assert seg.PhotometricInterpretation == "MONOCHROME2"


def write_without_uids(folder: Path) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = dataset.FrameOfReferenceUID = dataset.StudyInstanceUID = ""

    write_series(folder, regular_stack(), change=change)


def test_missing_uids_are_derived_reproducibly_and_give_a_warning(
    tmp_path: Path, read: Read, make_manifest: MakeManifest
) -> None:
    write_without_uids(tmp_path / "in")
    scan = read(tmp_path / "in")

    def made(name: str, job: int, what: str = "a scan") -> tuple[Dataset, WrittenSegmentation]:
        written = write_segmentation(
            tmp_path / name,
            labels_of(scan.volume.voxels),
            source_of_mask(scan),
            make_manifest(),
            segmentation_type="binary",
            uid_seed=UidSeed(UUID(int=job), what),
        )
        return pydicom.dcmread(tmp_path / name), written

    first, written = made("first", 1)
    assert written.warnings == tuple(
        ReportWarning(
            WarningCode.UIDS_GENERATED, f"the scan has no {name}: the DICOM segmentation refers to a generated one"
        )
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    )
    again, other, elsewhere = (made(*way)[0] for way in (("again", 1), ("other", 2), ("elsewhere", 1, "another scan")))
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert UID(first[name].value).is_valid
        assert first[name].value == other[name].value != elsewhere[name].value
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert UID(first[name].value).is_valid
        assert first[name].value == again[name].value != other[name].value
    assert first.ReferencedSeriesSequence[0].SeriesInstanceUID != first.SeriesInstanceUID
    clock = {"InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"}
    clock |= {"ContributingEquipmentSequence"}
    made_anew = {"DimensionOrganizationSequence", "DimensionIndexSequence"}
    assert {element.keyword for element in first if element != again[element.tag]} <= clock | made_anew


@pytest.mark.parametrize("segmentation_type", SEGMENTATION_TYPES)
def test_a_label_without_voxels_is_described_and_reported(
    tmp_path: Path, read: Read, make_manifest: MakeManifest, segmentation_type: SegmentationType
) -> None:
    write_series(tmp_path / "in", regular_stack())
    scan = read(tmp_path / "in")
    for mask, empty in (
        (labels_of(scan.volume.voxels), ("label 2",)),
        (np.zeros(scan.volume.shape, np.uint8, order="F"), ("label 1", "label 2", "label 3")),
    ):
        written = write_segmentation(
            tmp_path / "seg",
            mask,
            source_of_mask(scan),
            make_manifest(),
            segmentation_type=segmentation_type,
            uid_seed=UID_SEED,
        )
        assert written.empty_segments == empty
        seg = read_segmentation(tmp_path / "seg")
        np.testing.assert_array_equal(by_instance(seg, scan), mask)
        assert list(seg.segment_numbers) == [1, 2, 3]
        if not mask.any():
            # An object must have frames: it gets those of the first slice.
            assert {source_of(frame).ReferencedSOPInstanceUID for frame in frames_of(seg)} == {"1.2.3.4.1"}
            assert len(seg.SourceImageSequence) == 6


@pytest.mark.parametrize("segmentation_type", SEGMENTATION_TYPES)
def test_many_labels_with_large_values_are_read_back(
    tmp_path: Path, read: Read, make_segmentation: Make, segmentation_type: SegmentationType
) -> None:
    values = [0, *range(5, 65000, 200)]
    assert len(values) > 256
    write_series(tmp_path / "in", regular_stack())
    scan = read(tmp_path / "in")
    places = np.arange(9 * 7 * 6).reshape(9, 7, 6) % len(values)
    seg = make_segmentation(
        np.asfortranarray(np.array(values, np.uint16)[places]), scan, segmentation_type=segmentation_type, values=values
    )
    np.testing.assert_array_equal(by_instance(seg, scan), places)


def test_patient_and_study_are_copied_from_the_scan(
    tmp_path: Path, read: Read, make_segmentation: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def change(k: int, dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientName = "Müller^Jörg^^^"
        dataset.StudyInstanceUID = "1.2.3"
        dataset.StudyDescription = "Thorax"
        dataset.PatientSex = "?"
        dataset.PatientAge = "61 years"
        dataset.add_new("StudyDate", "DA", "2020.13.01")
        other = Dataset()
        other.PatientID = "Ö-1"
        other.IssuerOfPatientID = "a clinic"
        dataset.OtherPatientIDsSequence = [other]

    for syntax in ("1.2.840.10008.1.2.1", ExplicitVRBigEndian):
        write_series(tmp_path / syntax, regular_stack(), change=change, syntax=syntax)
        scan = read(tmp_path / syntax)
        seg = make_segmentation(labels_of(scan.volume.voxels), scan)
        assert (seg.PatientName, seg.PatientID, seg.AccessionNumber) == ("Müller^Jörg^^^", PATIENT_ID, "A-0815")
        assert (seg.StudyInstanceUID, seg.StudyDescription) == ("1.2.3", "Thorax")
        assert (seg.PatientSex, seg.PatientAge, seg["StudyDate"].value) == ("?", "61 years", "2020.13.01")
        assert seg.OtherPatientIDsSequence[0].PatientID == "Ö-1"
        assert seg.SpecificCharacterSet == "ISO_IR 192"
        assert seg.Modality == "SEG"
    for secret in ("ller", PATIENT, PATIENT_ID, "19610203", "0815", "2020.13"):
        assert secret not in caplog.text


def test_invalid_private_attributes_are_ignored(tmp_path: Path, read: Read, make_segmentation: Make) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.add_new((0x0019, 0x0010), "LO", "ACME")
        dataset.add_new((0x0019, 0x1001), "OB", b"no items at all\0")
        dataset.ImageComments = "1\\" * 5000

    for path in write_series(tmp_path / "in", regular_stack(), change=change):
        element = b"\x19\0\x01\x10OB\0\0"
        content = path.read_bytes()
        assert element in content
        path.write_bytes(content.replace(element, element.replace(b"OB", b"SQ")))
    scan = read(tmp_path / "in")
    seg = make_segmentation(labels_of(scan.volume.voxels), scan)
    assert seg.PatientID == PATIENT_ID
    np.testing.assert_array_equal(by_instance(seg, scan), labels_of(scan.volume.voxels))


def test_missing_patient_attributes_stay_empty(tmp_path: Path, read: Read, make_segmentation: Make) -> None:
    write_series(
        tmp_path / "in",
        regular_stack(),
        change=without_attributes("PatientName", "PatientID", "AccessionNumber", "Modality"),
    )
    scan = read(tmp_path / "in")
    seg = make_segmentation(labels_of(scan.volume.voxels), scan)
    for name in ("PatientName", "PatientID", "AccessionNumber", "StudyDate", "ReferringPhysicianName"):
        assert not seg[name].value


def test_segments_have_codes_and_an_algorithm(tmp_path: Path, read: Read, make_segmentation: Make) -> None:
    lung = {"scheme": "SCT", "value": "39607008", "meaning": "Lung"}
    structure = {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical Structure"}
    labels = [
        {"name": "background", "value": 0},
        {"name": "other", "value": 3},
        {"name": "poumon é", "value": 1, "category": structure, "type": lung},
    ]
    write_series(tmp_path / "in", regular_stack())
    scan = read(tmp_path / "in")
    seg = make_segmentation(labels_of(scan.volume.voxels), scan, labels=labels, sha256="a" * 64)
    first, second = seg.SegmentSequence
    assert (first.SegmentLabel, first.SegmentAlgorithmType, first.SegmentAlgorithmName) == (
        "poumon é",
        "AUTOMATIC",
        "test",
    )
    (algorithm,) = first.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("test", "1")
    assert algorithm.AlgorithmParameters == f"sha256={'a' * 64}"
    # The colours of the preview, in the order of the manifest, within DICOM's rounding of colours.
    for place, segment in enumerate((second, first)):
        shown = CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb()
        np.testing.assert_allclose(shown, label_colour(place), atol=2)
    codes = [
        [
            (code.CodingSchemeDesignator, code.CodeValue, code.CodeMeaning)
            for code in (item.SegmentedPropertyCategoryCodeSequence[0], item.SegmentedPropertyTypeCodeSequence[0])
        ]
        for item in (first, second)
    ]
    assert codes[0] == [("SCT", "123037004", "Anatomical Structure"), ("SCT", "39607008", "Lung")]
    assert codes[1] == [("SCT", "85756007", "Tissue")] * 2


def test_a_segment_has_the_side_and_the_colour_of_its_label(
    tmp_path: Path, read: Read, make_segmentation: Make
) -> None:
    lung = {"scheme": "SCT", "value": "39607008", "meaning": "Lung"}
    left = {"scheme": "SCT", "value": "7771000", "meaning": "Left"}
    labels = [
        {"name": "background", "value": 0},
        {"name": "left lung", "value": 1, "type": lung, "modifier": left, "colour": [71, 62, 248]},
        {"name": "other", "value": 3},
    ]
    write_series(tmp_path / "in", regular_stack())
    scan = read(tmp_path / "in")
    first, second = make_segmentation(labels_of(scan.volume.voxels), scan, labels=labels).SegmentSequence
    (modifier,) = first.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert (modifier.CodingSchemeDesignator, modifier.CodeValue, modifier.CodeMeaning) == ("SCT", "7771000", "Left")
    shown = CIELabColor.from_dicom_value(first.RecommendedDisplayCIELabValue).to_rgb()
    np.testing.assert_allclose(shown, (71, 62, 248), atol=2)
    assert "SegmentedPropertyTypeModifierCodeSequence" not in second.SegmentedPropertyTypeCodeSequence[0]


@pytest.mark.parametrize("segmentation_type", SEGMENTATION_TYPES)
def test_the_mask_of_a_real_series_is_read_back(
    real_scans: Path, tmp_path: Path, make_segmentation: Make, segmentation_type: SegmentationType
) -> None:
    """JPEG 2000, no StudyInstanceUID and no SeriesInstanceUID."""
    scan = read_scan(real_scans / "example_ct_dicom", tmp_path, ReadLimits(10**7))
    mask = np.asfortranarray(np.digitize(scan.volume.voxels.astype(np.int16), [-350, -25, 180]).astype(np.uint8))
    seg = make_segmentation(mask, scan, segmentation_type=segmentation_type)
    np.testing.assert_array_equal(by_instance(seg, scan), mask)
    np.testing.assert_array_equal(seg.get_volume(combine_segments=True).array[::-1].transpose(2, 1, 0), mask)
    assert_frames_lie_on_their_sources_by_place(seg, scan)


def assert_frames_lie_on_their_sources_by_place(seg: highdicom.seg.Segmentation, scan: Scan) -> None:
    places = {slice_.instance.sop_instance_uid: slice_.frame.position_mm for slice_ in scan.slices}
    for frame in frames_of(seg):
        assert tuple(position_of(frame)) == places[source_of(frame).ReferencedSOPInstanceUID]
