"""A mask as a DICOM Segmentation (PS3.3 A.51): frames on the slices that it was made from, which it refers to.

The one place where patient data is read: it goes from the scan's first file into the object, never through highdicom,
whose log would quote it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast
from uuid import NAMESPACE_OID, UUID, uuid5

import numpy as np
import pydicom
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as SegmentationObject
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as ConceptCode
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless
from pydicom.valuerep import DSfloat

from inference_service.contract.manifest import CodedConcept, Label, Manifest
from inference_service.contract.result_files import SegmentationType
from inference_service.formats.dicom.header import is_long, quietly, reading_errors
from inference_service.formats.dicom.image import Image
from inference_service.formats.dicom.series_geometry import Slice, plane_axes
from inference_service.formats.read_limits import RequireMemory, no_memory_limit
from inference_service.imaging.palette import label_colour

logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)


_MAKER = "inference-service"
# As in dcmqi's examples; a study has seldom so many series of its own.
_SERIES_NUMBER = 300
_UTF_8 = "ISO_IR 192"
_LONG_STRING = 64
_COMPRESSION = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


@dataclass(frozen=True)
class UidSeed:
    """The values that UIDs are derived from, so that a repeated attempt of a job writes the same ones.

    Attributes:
        job_id: For the UIDs of the object and its series.
        input_sha256: For UIDs that the scan should have and has not; the same for every job on one scan.
    """

    job_id: UUID
    input_sha256: str


@dataclass(frozen=True)
class SourceSeries:
    """The series that a mask was made from.

    Attributes:
        slices: Its slices, in the order of the mask's third axis.
        evenly_spaced: Whether they are evenly spaced.
    """

    slices: Sequence[Slice]
    evenly_spaced: bool


@dataclass(frozen=True)
class WrittenSegmentation:
    """What became of a mask.

    Attributes:
        empty_segments: Names of segments that are described and have no voxel.
        warnings: What a reader of the object should know.
    """

    empty_segments: tuple[str, ...]
    warnings: tuple[str, ...]


def write_segmentation(
    path: Path,
    mask: NDArray[np.unsignedinteger],
    source: SourceSeries,
    manifest: Manifest,
    *,
    segmentation_type: SegmentationType,
    uid_seed: UidSeed,
    require_memory: RequireMemory = no_memory_limit,
) -> WrittenSegmentation:
    """Writes a mask as DICOM.

    A slice without a label gets no frame; in a mask without any, the first slice gets all, as an object must have some.

    Args:
        path: Where to.
        mask: Shape (columns, rows, slices), label values; 0 is no segment.
        source: The series that the mask was made from.
        manifest: Names the labels and the algorithm.
        segmentation_type: binary writes one bit plane a segment and slice, labelmap the segment numbers of each slice.
        uid_seed: The UIDs of the object and its series are derived from it.
        require_memory: Told how many bytes are about to be taken; what it raises ends the writing.

    Raises:
        InputCorrupt: What the scan says of its patient and study cannot be copied.
    """
    slices = source.slices
    labels = sorted((label for label in manifest.labels if label.value), key=lambda label: label.value)
    require_memory(mask.nbytes)
    planes, found = _planes(mask, labels)
    frames = np.count_nonzero(found)
    # Bits of each segment, or bytes of each slice; alone, together, and in what is written.
    require_memory(3 * frames * planes[0].size // 8 if segmentation_type == "binary" else 3 * planes.nbytes)
    shown = len(slices) if frames else 1
    with quietly(), reading_errors():
        header = pydicom.dcmread(slices[0].image.path, force=True, stop_before_pixels=True)
        # Neither is copied, and both may be damaged without harm to the scan.
        for tag in list(header.keys()):
            if tag.is_private or is_long(header, tag):
                del header[tag]
        header.decode()
    names, missing = _names(slices, header, uid_seed)
    with quietly():
        made = SegmentationObject(
            source_images=list(_stand_ins(slices, names, even=source.evenly_spaced))[:shown],
            pixel_array=planes[:shown],
            segmentation_type=SegmentationTypeValues[segmentation_type.upper()],
            segment_descriptions=[_description(label, number, manifest) for number, label in enumerate(labels, 1)],
            series_instance_uid=_uid(uid_seed.job_id, segmentation_type, "series"),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=_uid(uid_seed.job_id, segmentation_type, "instance"),
            instance_number=1,
            manufacturer=_MAKER,
            manufacturer_model_name=_MAKER,
            software_versions=version(_MAKER),
            # There is no device but the network.
            device_serial_number=manifest.sha256,
            content_label="SEGMENTATION",
            content_description=_title(manifest),
            series_description=_title(manifest),
            transfer_syntax_uid=RLELossless if segmentation_type == "labelmap" else ExplicitVRLittleEndian,
            specific_character_set=_UTF_8,
        )
    _refer(made, slices, names)
    with quietly(), reading_errors():
        _copy_patient_and_study(made, header, names)
        pydicom.dcmwrite(path, made, enforce_file_format=True)
    return WrittenSegmentation(
        empty_segments=tuple(label.name for label, there in zip(labels, found.T, strict=True) if not there.any()),
        warnings=tuple(f"the scan has no {name}: the DICOM segmentation refers to one made up" for name in missing),
    )


def _planes(
    mask: NDArray[np.unsignedinteger], labels: Sequence[Label]
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Segment numbers, shape (slices, rows, columns), and which slice has which segment, shape (slices, segments)."""
    columns, rows, count = mask.shape
    table = np.zeros(
        np.iinfo(mask.dtype).max + 1, dtype=np.uint8 if len(labels) <= np.iinfo(np.uint8).max else np.uint16
    )
    table[[label.value for label in labels]] = np.arange(1, len(labels) + 1)
    planes = np.empty((count, rows, columns), dtype=table.dtype)
    found = np.zeros((count, len(labels) + 1), dtype=bool)
    # One by one, as numpy makes 8 bytes of each index.
    for k in range(count):
        planes[k] = table[mask[:, :, k].T]
        found[k] = np.bincount(planes[k].ravel(), minlength=found.shape[1]) > 0
    return planes, found[:, 1:]


def _title(manifest: Manifest) -> str:
    return f"{manifest.name} {manifest.version}"[:_LONG_STRING]


def _uid(seed: UUID, *parts: str) -> str:
    """A UID by PS3.5 B.2, the same for the same parts."""
    return f"2.25.{uuid5(seed, '/'.join(parts)).int}"


@dataclass(frozen=True)
class _Names:
    """UIDs of the scan; made up where it has none.

    Attributes:
        study: Its study.
        series: Its series.
        frame_of_reference: What its positions refer to.
        instances: Each file's.
    """

    study: str
    series: str
    frame_of_reference: str
    instances: Mapping[Path, str]


def _names(slices: Sequence[Slice], header: Dataset, uid_seed: UidSeed) -> tuple[_Names, list[str]]:
    """The scan's UIDs, and which of them are made up."""
    made_up: list[str] = []

    def named(uid: str, name: str, *parts: str) -> str:
        if uid:
            return uid
        if name not in made_up:
            made_up.append(name)
        return _uid(NAMESPACE_OID, uid_seed.input_sha256, name, *parts)

    first = slices[0].image
    images = {piece.image.path: piece.image for piece in slices}
    names = _Names(
        study=named(str(header.get("StudyInstanceUID") or ""), "StudyInstanceUID"),
        series=named(first.series_uid, "SeriesInstanceUID"),
        frame_of_reference=named(first.frame_of_reference_uid, "FrameOfReferenceUID"),
        instances={
            path: named(image.sop_instance_uid, "SOPInstanceUID", str(number))
            for number, (path, image) in enumerate(images.items())
        },
    )
    return names, made_up


def _stand_ins(slices: Sequence[Slice], names: _Names, *, even: bool) -> Iterator[Dataset]:
    """One single-frame image for each slice, with its geometry and a number for a name.

    highdicom takes a series of single frames or one multi-frame object, of kinds that it knows; ours may be others.
    """
    heights_mm = _heights_mm(slices)
    spacing_mm = float(np.median(np.diff(heights_mm))) if len(slices) > 1 else slices[0].image.thickness_mm or 1.0
    first = slices[0].plane
    # Right angles to the last digit, which a header of few digits has not, and which readers insist on.
    along_row, along_column, _ = plane_axes(first).T
    for number, piece in enumerate(slices):
        image, plane = piece.image, piece.plane
        stand_in = Dataset()
        stand_in.SOPClassUID, stand_in.SOPInstanceUID = CTImageStorage, f"2.25.{number + 1}"
        stand_in.StudyInstanceUID, stand_in.SeriesInstanceUID = names.study, names.series
        stand_in.FrameOfReferenceUID = names.frame_of_reference
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                     "StudyDate", "StudyTime", "ReferringPhysicianName"):  # fmt: skip
            setattr(stand_in, name, None)
        stand_in.Rows, stand_in.Columns = image.layout.rows, image.layout.columns
        # Slices may differ by rounding here; a segmentation has one orientation and one pixel spacing.
        stand_in.ImageOrientationPatient = _decimals((*along_row, *along_column))
        stand_in.PixelSpacing = _decimals(reversed(first.pixel_mm))
        stand_in.ImagePositionPatient = _decimals(plane.position_mm)
        # What a voxel of the mask stands for. Readers are many that take it for the spacing.
        stand_in.SliceThickness = _decimals([spacing_mm])[0]
        if even:
            stand_in.SpacingBetweenSlices = stand_in.SliceThickness
        yield stand_in


def _decimals(values: Iterator[float] | Sequence[float]) -> list[DSfloat]:
    return [DSfloat(value, auto_format=True) for value in values]


def _heights_mm(slices: Sequence[Slice]) -> NDArray[np.float64]:
    plane = slices[0].plane
    normal = np.cross(plane.along_row, plane.along_column)
    positions_mm = np.array([piece.plane.position_mm for piece in slices])
    return cast("NDArray[np.float64]", positions_mm @ (normal / np.linalg.norm(normal)))


def _description(label: Label, number: int, manifest: Manifest) -> SegmentDescription:
    return SegmentDescription(
        segment_number=number,
        segment_label=label.name,
        segmented_property_category=_concept(label.category),
        segmented_property_type=_concept(label.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=manifest.name,
            family=codes.DCM.ArtificialIntelligence,
            version=manifest.version,
            parameters={"sha256": manifest.sha256},
        ),
        # As in the preview.
        display_color=CIELabColor.from_rgb(*label_colour(number - 1)),
    )


def _concept(code: CodedConcept | None) -> ConceptCode:
    """The code; of a label that has none, what 3D Slicer calls a segment of which nothing is known."""
    return ConceptCode(code.value, code.scheme, code.meaning) if code else codes.SCT.Tissue


def _copy_patient_and_study(made: SegmentationObject, header: Dataset, names: _Names) -> None:
    """Copies what the scan says of them, whatever its own kind is."""
    source = Dataset()
    for element in header:
        source.add(element)
    source.SOPClassUID, source.SOPInstanceUID, source.StudyInstanceUID = CTImageStorage, "2.25.1", names.study
    made.copy_patient_and_study_information(source)
    made.PositionReferenceIndicator = header.get("PositionReferenceIndicator")
    for name in _COMPRESSION:
        if name in header:
            made[name] = header[name]


def _refer(made: SegmentationObject, slices: Sequence[Slice], names: _Names) -> None:
    """Puts the scan's own files and frames where their stand-ins are referred to."""
    sources = {f"2.25.{number + 1}": piece for number, piece in enumerate(slices)}
    frames = made.PerFrameFunctionalGroupsSequence
    items = [item for frame in frames for item in frame.DerivationImageSequence[0].SourceImageSequence]
    # Frames of one slice share theirs.
    for item in {id(item): item for item in items}.values():
        piece = sources[item.ReferencedSOPInstanceUID]
        _name(item, piece.image, names)
        if len(piece.image.planes) > 1:
            item.ReferencedFrameNumber = piece.plane.frame + 1
    images = {piece.image.path: piece.image for piece in slices}
    made.SourceImageSequence = [_name(Dataset(), image, names) for image in images.values()]
    series = Dataset()
    series.SeriesInstanceUID = names.series
    series.ReferencedInstanceSequence = [_name(Dataset(), image, names) for image in images.values()]
    made.ReferencedSeriesSequence = [series]


def _name(item: Dataset, image: Image, names: _Names) -> Dataset:
    item.ReferencedSOPClassUID = image.sop_class_uid or CTImageStorage
    item.ReferencedSOPInstanceUID = names.instances[image.path]
    return item
