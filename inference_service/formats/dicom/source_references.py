"""References from a derived object to the series that it was made from, and the patient and study that it takes over.

highdicom builds an object from source images of a few kinds, all single-frame or one multi-frame. Series may be others:
each slice is therefore represented by a single-frame stand-in, and references to it are replaced afterwards.

This is the one place where patient data are read. They go from the scan's first file into the object, and never through
highdicom, whose log would quote them.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from uuid import NAMESPACE_OID, UUID, uuid5

import numpy as np
import pydicom
from highdicom.seg import Segmentation
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DSfloat

from inference_service.formats.dicom.attributes import is_too_long
from inference_service.formats.dicom.bounded_file import BoundedFile
from inference_service.formats.dicom.instance import Instance, Slice
from inference_service.formats.dicom.pydicom_errors import map_pydicom_errors, suppress_warnings
from inference_service.formats.dicom.series.geometry import instances_of, plane_axes

_COMPRESSION = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_PATIENT_AND_STUDY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class SourceSeries:
    """The series that an object is made from.

    Attributes:
        slices: The series' slices, in the order of the mask's third axis.
        evenly_spaced: Whether the slices are evenly spaced.
    """

    slices: Sequence[Slice]
    evenly_spaced: bool


@dataclass(frozen=True)
class SourceUids:
    """The UIDs of the source series; derived UIDs where the series states none.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        frame_of_reference: FrameOfReferenceUID.
        instances: SOPInstanceUID of each file.
        derived: Keywords of the derived UIDs.
    """

    study: str
    series: str
    frame_of_reference: str
    instances: Mapping[Path, str]
    derived: tuple[str, ...]


def derive_uid(seed: UUID, *parts: str) -> str:
    """A UID from a UUID (PS3.5 B.2): the same for the same arguments.

    >>> derive_uid(UUID(int=0), "binary", "series")
    '2.25.20166156793307288293285855881953696519'
    """
    return f"2.25.{uuid5(seed, '/'.join(parts)).int}"


def read_source_header(path: Path) -> Dataset:
    """Reads the header of the scan's first file, with patient and study.

    Private attributes and long ones are dropped: they are not copied, and need not be valid.

    Raises:
        InputCorrupt: The header is damaged.
    """
    with suppress_warnings(), map_pydicom_errors(), BoundedFile(path) as file:
        header = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        for tag in list(header.keys()):
            if tag.is_private or is_too_long(header, tag):
                del header[tag]
        header.decode()
    return header


def find_source_uids(slices: Sequence[Slice], header: Dataset, input_sha256: str) -> SourceUids:
    """The UIDs of a series.

    Args:
        slices: The series' slices.
        header: The header of the series' first file.
        input_sha256: UIDs that the series does not state are derived from this hash.
    """
    derived: list[str] = []

    def stated_or_derived(uid: str, keyword: str, *parts: str) -> str:
        if uid:
            return uid
        if keyword not in derived:
            derived.append(keyword)
        return derive_uid(NAMESPACE_OID, input_sha256, keyword, *parts)

    first = slices[0].instance
    study = stated_or_derived(str(header.get("StudyInstanceUID") or ""), "StudyInstanceUID")
    series = stated_or_derived(first.series_uid, "SeriesInstanceUID")
    frame_of_reference = stated_or_derived(first.frame_of_reference_uid, "FrameOfReferenceUID")
    instances = {
        instance.path: stated_or_derived(instance.sop_instance_uid, "SOPInstanceUID", str(number))
        for number, instance in enumerate(instances_of(slices))
    }
    return SourceUids(study, series, frame_of_reference, instances, tuple(derived))


def stand_in_images(source: SourceSeries, uids: SourceUids) -> Iterator[Dataset]:
    """A single-frame image for each slice, with its geometry, and its number from 1 as SOPInstanceUID."""
    first = source.slices[0].frame
    # At exactly right angles, which readers insist on, and which a header of few digits does not give.
    row, column, _ = plane_axes(first).T
    # The extent of a mask's voxel; many readers take SliceThickness for the spacing.
    thickness = _format_decimals([_slice_extent_mm(source.slices)])[0]
    for number, slice_ in enumerate(source.slices, 1):
        stand_in = Dataset()
        stand_in.SOPClassUID = CTImageStorage
        stand_in.SOPInstanceUID = _stand_in_uid(number)
        stand_in.StudyInstanceUID = uids.study
        stand_in.SeriesInstanceUID = uids.series
        stand_in.FrameOfReferenceUID = uids.frame_of_reference
        for keyword in _PATIENT_AND_STUDY:
            setattr(stand_in, keyword, None)
        stand_in.Rows = slice_.instance.pixels.rows
        stand_in.Columns = slice_.instance.pixels.columns
        # Those of the first slice: slices may differ by rounding, but a segmentation has one orientation and spacing.
        stand_in.ImageOrientationPatient = _format_decimals((*row, *column))
        stand_in.PixelSpacing = _format_decimals(reversed(first.pixel_spacing_mm))
        stand_in.ImagePositionPatient = _format_decimals(slice_.frame.position_mm)
        stand_in.SliceThickness = thickness
        if source.evenly_spaced:
            stand_in.SpacingBetweenSlices = thickness
        yield stand_in


def refer_to_source(made: Segmentation, slices: Sequence[Slice], uids: SourceUids) -> None:
    """Replaces references to stand-ins by references to the source's files and frames (PS3.3 C.7.6.16.2.6)."""
    slice_of_uid = {_stand_in_uid(number): slice_ for number, slice_ in enumerate(slices, 1)}
    frames = made.PerFrameFunctionalGroupsSequence
    references = [item for frame in frames for item in frame.DerivationImageSequence[0].SourceImageSequence]
    # The segments of one slice may share an item, which is to be replaced once.
    for item in {id(item): item for item in references}.values():
        slice_ = slice_of_uid[item.ReferencedSOPInstanceUID]
        _set_reference(item, slice_.instance, uids)
        if len(slice_.instance.frames) > 1:
            item.ReferencedFrameNumber = slice_.frame.index + 1
    instances = instances_of(slices)
    made.SourceImageSequence = [_set_reference(Dataset(), instance, uids) for instance in instances]
    numbers: dict[Path, list[int]] = defaultdict(list)
    for slice_ in slices:
        numbers[slice_.instance.path].append(slice_.frame.index + 1)
    for item, instance in zip(made.SourceImageSequence, instances, strict=True):
        if len(numbers[instance.path]) < len(instance.frames):
            item.ReferencedFrameNumber = sorted(numbers[instance.path])
    series = Dataset()
    series.SeriesInstanceUID = uids.series
    series.ReferencedInstanceSequence = [_set_reference(Dataset(), instance, uids) for instance in instances]
    made.ReferencedSeriesSequence = [series]


def copy_patient_and_study(made: Segmentation, header: Dataset, uids: SourceUids) -> None:
    """Copies the attributes of patient, study and lossy compression; works for every SOP class of the scan."""
    source = Dataset()
    for element in header:
        source.add(element)
    source.SOPClassUID = CTImageStorage
    source.SOPInstanceUID = _stand_in_uid(1)
    source.StudyInstanceUID = uids.study
    made.copy_patient_and_study_information(source)
    made.PositionReferenceIndicator = header.get("PositionReferenceIndicator")
    for keyword in _COMPRESSION:
        if keyword in header:
            made[keyword] = header[keyword]


def _stand_in_uid(number: int) -> str:
    return f"2.25.{number}"


def _slice_extent_mm(slices: Sequence[Slice]) -> float:
    """Median distance between slices; for a single slice its thickness, or 1 mm where the header states none."""
    if len(slices) == 1:
        return slices[0].instance.slice_thickness_mm or 1.0
    return float(np.median(np.diff(_heights_mm(slices))))


def _heights_mm(slices: Sequence[Slice]) -> NDArray[np.float64]:
    frame = slices[0].frame
    normal = np.cross(frame.row_direction, frame.column_direction)
    positions_mm = np.array([slice_.frame.position_mm for slice_ in slices])
    return cast("NDArray[np.float64]", positions_mm @ (normal / np.linalg.norm(normal)))


def _format_decimals(values: Iterable[float]) -> list[DSfloat]:
    return [DSfloat(value, auto_format=True) for value in values]


def _set_reference(item: Dataset, instance: Instance, uids: SourceUids) -> Dataset:
    item.ReferencedSOPClassUID = instance.sop_class_uid or CTImageStorage
    item.ReferencedSOPInstanceUID = uids.instances[instance.path]
    return item
