"""Reads a DICOM series from files: their headers, the selected series, its geometry and pixels, the volume's grid."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from inference_service.contract.input_options import DEFAULT_INPUT_OPTIONS, InputOptions
from inference_service.core.errors import (
    InconsistentGeometry,
    InputCorrupt,
    InputTooLarge,
    MissingSlices,
    NotAVolume,
)
from inference_service.core.memory_budget import RequireMemory
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.dicom.file_check import looks_like_dicom, may_be_damaged
from inference_service.formats.dicom.header import read_instance
from inference_service.formats.dicom.instance import (
    MAX_AXIS_VOXELS,
    ExclusionReason,
    Instance,
    Slice,
    UnusableInstance,
    ValueType,
)
from inference_service.formats.dicom.pixels.decoder import check_decodable
from inference_service.formats.dicom.pixels.frame_stack import background_value, padding_range, stack_frames
from inference_service.formats.dicom.series.acquisitions import find_groups
from inference_service.formats.dicom.series.consistency import check_positions, check_rescaling, find_value_type
from inference_service.formats.dicom.series.duplicates import CopyFinder
from inference_service.formats.dicom.series.geometry import SeriesGeometry, find_geometry, instances_of
from inference_service.formats.dicom.series.group_description import describe_groups
from inference_service.formats.dicom.series.selection import select_series
from inference_service.formats.dicom.series.slice_selection import select_slices
from inference_service.formats.dicom.transfer_syntax import ALWAYS_LOSSY
from inference_service.formats.read_limits import ReadLimits
from inference_service.imaging.geometry import Volume
from inference_service.imaging.slice_alignment import AlignedVolume, align_slices, aligned_shape
from inference_service.imaging.slice_spacing import EvenlySpacedVolume, even_plane_count, space_evenly


@dataclass(frozen=True)
class DicomSeries:
    """A volume that was read from a series, with the data that a mask on its grid needs.

    Attributes:
        volume: The volume on the grid that a mask gets.
        aligned: The volume for the network where that grid is sheared; None where the network gets `volume`.
        evenly_spaced: Takes a mask back to the slices, where these were unevenly spaced; None elsewhere.
        modality: Modality of the series, such as CT; empty where the series states none.
        value_type: The quantity that the values measure, such as HU; None where no slice states it.
        slices: The series' slices along the volume's third axis; one a plane unless `evenly_spaced` is set.
        set_aside: Number of files that are no part of the series, by reason.
        warnings: Warnings for the user of the mask.
    """

    volume: Volume
    aligned: AlignedVolume | None
    evenly_spaced: EvenlySpacedVolume | None
    modality: str
    value_type: ValueType | None
    slices: tuple[Slice, ...]
    set_aside: Counter[ExclusionReason]
    warnings: tuple[ReportWarning, ...]


@dataclass(frozen=True)
class Headers:
    """The headers of an input's files.

    Attributes:
        instances: Image instances.
        unusable: Image instances with an invalid header.
        excluded: Number of the other files, by reason.
    """

    instances: list[Instance]
    unusable: list[UnusableInstance]
    excluded: Counter[ExclusionReason]


def read_series(
    files: Sequence[Path],
    limits: ReadLimits,
    *,
    options: InputOptions = DEFAULT_INPUT_OPTIONS,
    threads: int = 1,
) -> DicomSeries:
    """Reads the one series that files are meant to hold.

    Args:
        files: In any order and with any names; files that are not DICOM are set aside.
        limits: The largest input that is read.
        options: The series and the slices to read, and the defects of the geometry that are tolerated.
        threads: Number of threads that decode frames.

    Raises:
        InputError: There is not exactly one readable volume; the subclass says why.
    """
    headers = read_headers(files, limits)
    series, set_aside = _select(headers, options.series)
    slices, copy_warnings = _choose_slices(series, set_aside, options, limits.require_memory)
    geometry, value_type = _find_geometry(slices, options)
    rescaling_warnings = check_rescaling(geometry.slices)
    _check_size(geometry, limits.max_voxels)
    _check_slopes(slices)
    for instance in instances_of(slices):
        check_decodable(instance)
    stack = stack_frames(geometry.slices, require_memory=limits.require_memory, threads=threads)
    first = geometry.slices[0].instance
    warnings = [
        *geometry.warnings,
        *sorted({assumption for instance in instances_of(slices) for assumption in instance.assumptions}),
        *rescaling_warnings,
        *_pixel_warnings(slices),
        *copy_warnings,
        *_left_out_warnings(headers.instances, series, set_aside, len(files)),
    ]
    if stack.padding_voxels:
        message = f"{stack.padding_voxels} voxels are padding, and got the value {background_value(first):g}"
        warnings.append(ReportWarning(WarningCode.PADDING_VOXELS, message))
    volume, aligned, evenly_spaced = _regrid(Volume(stack.voxels, geometry.affine), geometry, limits.require_memory)
    return DicomSeries(
        volume=volume,
        aligned=aligned,
        evenly_spaced=evenly_spaced,
        modality=first.modality,
        value_type=value_type,
        slices=geometry.slices,
        set_aside=+set_aside,
        warnings=tuple(warnings),
    )


def read_headers(files: Sequence[Path], limits: ReadLimits) -> Headers:
    """Reads the header of each file; the limit on bytes applies to the inflated size of all deflated files together."""
    headers = Headers([], [], Counter())
    remaining_bytes = limits.max_bytes
    unrecognised = []
    for path in files:
        if not looks_like_dicom(path):
            unrecognised.append(path)
            continue
        found = read_instance(path, max_bytes=remaining_bytes, require_memory=limits.require_memory)
        if isinstance(found, Instance):
            headers.instances.append(found)
            remaining_bytes -= found.inflated_bytes
        elif isinstance(found, UnusableInstance):
            headers.unusable.append(found)
        else:
            headers.excluded[found] += 1
    damaged = sum(map(may_be_damaged, unrecognised)) if headers.instances else 0
    headers.excluded[ExclusionReason.UNREADABLE] += damaged
    headers.excluded[ExclusionReason.NOT_DICOM] += len(unrecognised) - damaged
    return _without_damaged_copies(headers)


def _without_damaged_copies(headers: Headers) -> Headers:
    """Leaves out files with an invalid header if another one has the same SOPInstanceUID and is intact."""
    intact = {(each.series_uid, each.sop_instance_uid) for each in headers.instances if each.sop_instance_uid}
    unusable = [each for each in headers.unusable if (each.series_uid, each.sop_instance_uid) not in intact]
    copies = Counter({ExclusionReason.DAMAGED_COPY: len(headers.unusable) - len(unusable)})
    return replace(headers, unusable=unusable, excluded=+(headers.excluded + copies))


def _select(headers: Headers, series_uid: str | None) -> tuple[list[Instance], Counter[ExclusionReason]]:
    """Selects the series to read.

    Returns:
        The series' instances, and the number of the other files by reason.

    Raises:
        InputError: There is no such series, or a file of the selected series has an invalid header.
    """
    unusable = headers.unusable
    try:
        instances, set_aside = select_series(headers.instances, series_uid, headers.excluded)
    except NotAVolume:
        if unusable:
            raise unusable[0].error from unusable[0].error.__cause__
        raise
    errors = [each.error for each in unusable if each.series_uid == instances[0].series_uid]
    if errors:
        files = len(errors) + len(instances)
        raise type(errors[0])(f"{errors[0]} ({len(errors)} of the series' {files} files)") from errors[0]
    set_aside.update(each.reason for each in unusable)
    return instances, set_aside


def _choose_slices(
    series: Sequence[Instance],
    set_aside: Counter[ExclusionReason],
    options: InputOptions,
    require_memory: RequireMemory,
) -> tuple[list[Slice], list[ReportWarning]]:
    """The slices of a series that the request selects, without copies, and a warning about frames that are copies.

    Args:
        series: The instances of the series.
        set_aside: Number of files that are left out, by reason; those of the series are added.
        options: The options of the request.
        require_memory: Called before each large allocation.
    """
    finder = CopyFinder(require_memory)
    intact = finder.without_damaged_copies(series)
    check_positions(intact)
    selected = select_slices([Slice(each, frame) for each in intact for frame in each.frames], options.select)
    slices = finder.without_equal_copies(selected)
    chosen, kept = instances_of(selected), instances_of(slices)
    set_aside[ExclusionReason.DAMAGED_COPY] += len(series) - len(intact)
    set_aside[ExclusionReason.NOT_SELECTED] += len(intact) - len(chosen)
    set_aside[ExclusionReason.DUPLICATE] += len(chosen) - len(kept)
    paths = {instance.path for instance in kept}
    repeated = sum(slice_.instance.path in paths for slice_ in selected) - len(slices)
    if not repeated:
        return slices, []
    message = f"{repeated} frames of multi-frame images are copies of others, with the same header and pixels: left out"
    return slices, [ReportWarning(WarningCode.DUPLICATE_FILES, message)]


def _find_geometry(slices: Sequence[Slice], options: InputOptions) -> tuple[SeriesGeometry, ValueType | None]:
    """Finds the grid of the slices, and the type of their values.

    Raises:
        InputError: The slices are not one volume. If attributes divide them into several, the error has these groups.
    """
    try:
        geometry = find_geometry(slices, options.tolerate)
        return geometry, find_value_type(geometry.slices)
    except (InconsistentGeometry, MissingSlices, NotAVolume) as error:
        groups = [replace(group, select={**options.select, **group.select}) for group in find_groups(slices)]
        if not groups:
            raise
        raise type(error)(f"{error}{describe_groups(groups)}", groups) from error


def _check_size(geometry: SeriesGeometry, max_voxels: int) -> None:
    """Refuses a series whose volume, as it is or once it is aligned and evenly spaced, is too large."""
    shape = aligned_shape(geometry.shape, geometry.shifts_px)
    if geometry.uneven:
        shape = (*shape[:2], even_plane_count(geometry.heights_mm, geometry.spacing_mm))
    voxels = max(prod(shape), prod(geometry.shape))
    if voxels > max_voxels:
        raise InputTooLarge(f"the series has {voxels} voxels; this service takes at most {max_voxels}")
    if max(shape) > MAX_AXIS_VOXELS:
        raise InputTooLarge(
            f"the series has {max(shape)} voxels along an axis; this service takes at most {MAX_AXIS_VOXELS}"
        )


def _check_slopes(slices: Sequence[Slice]) -> None:
    if all(slice_.frame.rescale_slope == 0 for slice_ in slices):
        raise InputCorrupt("RescaleSlope is 0 in all slices: expected another slope in slices with content")


def _pixel_warnings(slices: Sequence[Slice]) -> list[ReportWarning]:
    """Warnings about the pixel values: lossy compression, padding that was not applied, HighBit, MONOCHROME1."""
    warnings = []
    instances = instances_of(slices)
    lossy = sum(each.lossy or each.transfer_syntax_uid in ALWAYS_LOSSY for each in instances)
    if lossy:
        message = f"{lossy} of the series' {len(instances)} images were compressed with loss"
        warnings.append(ReportWarning(WarningCode.LOSSY_COMPRESSION, message))
    if any(
        slice_.instance.pixels.padding_range and padding_range(slice_.instance, slice_.frame) is None
        for slice_ in slices
    ):
        message = "the series marks values as padding that are tissue in CT: they were not taken for padding"
        warnings.append(ReportWarning(WarningCode.PADDING_VALUE_IGNORED, message))
    misplaced = sum(each.pixels.high_bit != each.pixels.bits_stored - 1 for each in instances)
    if misplaced:
        message = (
            f"HighBit contradicts BitsStored in {misplaced} of the series' {len(instances)} images: the lowest bits "
            "were taken for the values"
        )
        warnings.append(ReportWarning(WarningCode.HIGH_BIT_IGNORED, message))
    slopes = [slice_.frame.rescale_slope for slice_ in slices]
    if slopes.count(0):
        value = background_value(instances[0])
        message = (
            f"{slopes.count(0)} of {len(slopes)} slices have the RescaleSlope 0 and no content: they got the "
            f"value {value:g}"
        )
        warnings.append(ReportWarning(WarningCode.EMPTY_SLICES, message))
    if any(instance.monochrome1 for instance in instances):
        message = "low values are meant to be displayed bright (MONOCHROME1): values were not inverted"
        warnings.append(ReportWarning(WarningCode.MONOCHROME1, message))
    return warnings


def _left_out_warnings(
    images: Sequence[Instance], series: Sequence[Instance], set_aside: Counter[ExclusionReason], files: int
) -> list[ReportWarning]:
    """Warnings about copies, and about files that may be slices: a missing first or last one leaves no gap.

    Args:
        images: All image instances of the input.
        series: The image instances of the series that is read, with their copies.
        set_aside: Number of files that are no part of the series, by reason.
        files: Number of files in the input.
    """
    warnings = []
    duplicates = set_aside[ExclusionReason.DUPLICATE]
    if duplicates:
        message = f"{duplicates} of the {files} files are copies of others, with the same header and pixels: left out"
        warnings.append(ReportWarning(WarningCode.DUPLICATE_FILES, message))
    damaged = set_aside[ExclusionReason.DAMAGED_COPY]
    if damaged:
        message = f"{damaged} of the {files} files are damaged copies of others, with the same SOPInstanceUID: left out"
        warnings.append(ReportWarning(WarningCode.DAMAGED_COPIES, message))
    unread = set_aside[ExclusionReason.UNREADABLE]
    if unread:
        message = (
            f"{unread} of the {files} files could not be read as DICOM: if one was the first or the last slice, this "
            "slice is missing"
        )
        warnings.append(ReportWarning(WarningCode.UNREADABLE_FILES, message))
    look_alikes = _count_look_alikes(images, series)
    if look_alikes:
        images_were = "image with the planes of the series was" if look_alikes == 1 else "images with its planes were"
        message = (
            f"{look_alikes} {images_were} left out, as ImageType does not say that they are slices: if one was the "
            "first or the last slice, this slice is missing"
        )
        warnings.append(ReportWarning(WarningCode.POSSIBLE_SLICES_LEFT_OUT, message))
    return warnings


def _count_look_alikes(images: Sequence[Instance], series: Sequence[Instance]) -> int:
    """Number of images that were left out although their series, orientation and size are those of the slices."""

    def appearance(instance: Instance) -> tuple[object, ...]:
        frame = instance.frames[0]
        cosines = (round(cosine, 3) for cosine in (*frame.row_direction, *frame.column_direction))
        return instance.series_uid, instance.pixels.rows, instance.pixels.columns, *cosines

    appearances = {appearance(instance) for instance in series if instance.frames}
    paths = {instance.path for instance in series}
    return sum(image.path not in paths and bool(image.frames) and appearance(image) in appearances for image in images)


def _regrid(
    volume: Volume, geometry: SeriesGeometry, require_memory: RequireMemory
) -> tuple[Volume, AlignedVolume | None, EvenlySpacedVolume | None]:
    """Aligns tilted slices, and interpolates uneven ones.

    Returns:
        The volume on the grid that a mask gets; the aligned volume for the network, if any; the
        evenly spaced volume, which takes a mask back to the slices, if any.
    """
    aligned = None
    itemsize = volume.voxels.dtype.itemsize
    if geometry.tilted:
        require_memory(prod(aligned_shape(volume.shape, geometry.shifts_px)) * itemsize)
        background = background_value(geometry.slices[0].instance)
        aligned = align_slices(volume, geometry.shifts_px, background=background)
    if not geometry.uneven:
        return volume, aligned, None
    # No regular grid holds unevenly spaced slices: the mask gets the interpolated grid, which is at right angles.
    straight = aligned.volume if aligned else volume
    planes = even_plane_count(geometry.heights_mm, geometry.spacing_mm)
    require_memory(prod((*straight.shape[:2], planes)) * itemsize)
    evenly_spaced = space_evenly(
        straight,
        geometry.heights_mm,
        geometry.spacing_mm,
        origins=aligned.origins if aligned else np.zeros((len(geometry.slices), 2), dtype=np.intp),
        slice_shape=volume.shape[:2],
    )
    return evenly_spaced.volume, None, evenly_spaced
