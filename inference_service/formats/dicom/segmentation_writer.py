"""Writes a mask as a DICOM Segmentation (PS3.3 A.51), with frames on the slices that it was made from."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

import numpy as np
import pydicom
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept as CodedConceptItem
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from inference_service.contract.labels import CodedConcept, Label, Rgb
from inference_service.contract.manifest import Manifest
from inference_service.contract.palette import label_colours
from inference_service.contract.result_files import SegmentationType
from inference_service.core.memory_budget import RequireMemory, no_memory_limit
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.dicom.pydicom_errors import map_pydicom_errors, suppress_warnings
from inference_service.formats.dicom.source_references import (
    SourceSeries,
    SourceUids,
    copy_patient_and_study,
    derive_uid,
    find_source_uids,
    read_source_header,
    refer_to_source,
    stand_in_images,
)

# Its messages quote values that may identify a patient.
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)

_MANUFACTURER = "inference-service"
# As in dcmqi's examples: beyond the numbers that the series of a study usually have.
_SERIES_NUMBER = 300
_UTF_8 = "ISO_IR 192"
# Length of value representation LO (PS3.5 6.2).
_MAX_LONG_STRING = 64


@dataclass(frozen=True)
class UidSeed:
    """The values that UIDs are derived from, so that a repeated attempt of a job writes the same ones.

    Attributes:
        job_id: The UIDs of the object and of its series are derived from it.
        input_sha256: UIDs that the scan does not state are derived from it, the same ones for every job on one scan.
    """

    job_id: UUID
    input_sha256: str


@dataclass(frozen=True)
class WrittenSegmentation:
    """A written segmentation, as the report describes it.

    Attributes:
        empty_segments: Names of segments without a voxel.
        warnings: Warnings for the user of the object.
    """

    empty_segments: tuple[str, ...]
    warnings: tuple[ReportWarning, ...]


@dataclass(frozen=True)
class _SegmentPlanes:
    """A mask as segment numbers.

    Attributes:
        numbers: Shape (slices, rows, columns): segment number of each pixel; 0 is background.
        is_present: Shape (slices, segments): whether a slice has pixels of a segment.
    """

    numbers: NDArray[np.generic]
    is_present: NDArray[np.bool_]


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
    """Writes a mask as a DICOM Segmentation.

    A slice without a label gets no frame. As an object must have frames, a mask without any label gets those of the
    first slice.

    Args:
        path: The file to write.
        mask: Shape (columns, rows, slices), label values; 0 is background.
        source: The series that the mask was made from.
        manifest: Names the labels and the algorithm.
        segmentation_type: binary has a plane of bits for each segment of a slice, labelmap the segment numbers of each
            slice.
        uid_seed: The UIDs of the object and its series are derived from it.
        require_memory: Called before each large allocation.

    Raises:
        InputCorrupt: The scan's patient and study cannot be copied.
    """
    labels = sorted((label for label in manifest.labels if label.value), key=lambda label: label.value)
    require_memory(mask.nbytes)
    planes = _number_segments(mask, labels)
    frames = np.count_nonzero(planes.is_present)
    # Bits of each segment's frame, or bytes of each slice: held by themselves, by highdicom, and in the encoded object.
    pixels = planes.numbers[0].size
    require_memory(3 * frames * pixels // 8 if segmentation_type == "binary" else 3 * planes.numbers.nbytes)
    header = read_source_header(source.slices[0].instance.path)
    uids = find_source_uids(source.slices, header, uid_seed.input_sha256)
    made = _build(
        planes.numbers if frames else planes.numbers[:1],
        source,
        uids,
        labels,
        manifest,
        segmentation_type=segmentation_type,
        job_id=uid_seed.job_id,
    )
    refer_to_source(made, source.slices, uids)
    # highdicom indexes the frames in SQLite and leaves the connection open.
    with closing(made._db_con), suppress_warnings(), map_pydicom_errors():
        copy_patient_and_study(made, header, uids)
        pydicom.dcmwrite(path, made, enforce_file_format=True)
    return WrittenSegmentation(
        empty_segments=tuple(
            label.name for label, in_slices in zip(labels, planes.is_present.T, strict=True) if not in_slices.any()
        ),
        warnings=tuple(map(_generated_uid_warning, uids.derived)),
    )


def _generated_uid_warning(keyword: str) -> ReportWarning:
    message = f"the scan has no {keyword}: the DICOM segmentation refers to a generated one"
    return ReportWarning(WarningCode.UIDS_GENERATED, message)


def _build(
    planes: NDArray[np.generic],
    source: SourceSeries,
    uids: SourceUids,
    labels: Sequence[Label],
    manifest: Manifest,
    *,
    segmentation_type: SegmentationType,
    job_id: UUID,
) -> Segmentation:
    """Builds the object on stand-ins of the first slices, as many as there are planes."""
    title = f"{manifest.name} {manifest.version}"[:_MAX_LONG_STRING]
    colours = label_colours(manifest.labels)
    with suppress_warnings():
        return Segmentation(
            source_images=list(stand_in_images(source, uids))[: len(planes)],
            pixel_array=planes,
            segmentation_type=SegmentationTypeValues[segmentation_type.upper()],
            segment_descriptions=[
                _describe(label, number, colours[label.value], manifest) for number, label in enumerate(labels, 1)
            ],
            series_instance_uid=derive_uid(job_id, segmentation_type, "series"),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=derive_uid(job_id, segmentation_type, "instance"),
            instance_number=1,
            manufacturer=_MANUFACTURER,
            manufacturer_model_name=_MANUFACTURER,
            software_versions=version(_MANUFACTURER),
            # Required; the network stands for the device.
            device_serial_number=manifest.networks_sha256,
            content_label="SEGMENTATION",
            content_description=title,
            series_description=title,
            transfer_syntax_uid=RLELossless if segmentation_type == "labelmap" else ExplicitVRLittleEndian,
            specific_character_set=_UTF_8,
        )


def _number_segments(mask: NDArray[np.unsignedinteger], labels: Sequence[Label]) -> _SegmentPlanes:
    columns, rows, slices = mask.shape
    number_dtype = np.uint8 if len(labels) <= np.iinfo(np.uint8).max else np.uint16
    number_of_value = np.zeros(np.iinfo(mask.dtype).max + 1, dtype=number_dtype)
    number_of_value[[label.value for label in labels]] = np.arange(1, len(labels) + 1)
    numbers = np.empty((slices, rows, columns), dtype=number_dtype)
    is_present = np.zeros((slices, len(labels) + 1), dtype=bool)
    # Slice by slice, as numpy indexes with 8 bytes a voxel.
    for k in range(slices):
        numbers[k] = number_of_value[mask[:, :, k].T]
        is_present[k] = np.bincount(numbers[k].ravel(), minlength=len(labels) + 1) > 0
    return _SegmentPlanes(numbers, is_present[:, 1:])


def _describe(label: Label, number: int, colour: Rgb, manifest: Manifest) -> SegmentDescription:
    description = SegmentDescription(
        segment_number=number,
        segment_label=label.name,
        segmented_property_category=_concept(label.category),
        segmented_property_type=_concept(label.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=manifest.name,
            family=codes.DCM.ArtificialIntelligence,
            version=manifest.version,
            parameters={"sha256": manifest.networks_sha256},
        ),
        display_color=CIELabColor.from_rgb(*colour),
    )
    if label.modifier is not None:
        modifier = CodedConceptItem.from_code(_concept(label.modifier))
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return description


def _concept(concept: CodedConcept | None) -> Code:
    """A label's concept, or else Tissue, as 3D Slicer codes a segment of unknown content."""
    return Code(concept.value, concept.scheme, concept.meaning) if concept else codes.SCT.Tissue
