"""Reads a DICOM series from files: the selected series, its slices, geometry and pixels, and the volume's grid."""

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
from inference_service.formats.dicom.instance import (
    MAX_AXIS_VOXELS,
    ExclusionReason,
    Instance,
    Slice,
    ValueType,
)
from inference_service.formats.dicom.pixels.decoder import check_decodable
from inference_service.formats.dicom.pixels.frame_stack import background_value, stack_frames
from inference_service.formats.dicom.series.acquisitions import find_groups
from inference_service.formats.dicom.series.consistency import check_positions, check_rescaling, find_value_type
from inference_service.formats.dicom.series.duplicates import CopyFinder
from inference_service.formats.dicom.series.geometry import SeriesGeometry, find_geometry, instances_of
from inference_service.formats.dicom.series.group_description import describe_groups
from inference_service.formats.dicom.series.headers import Headers, read_headers
from inference_service.formats.dicom.series.selection import select_series
from inference_service.formats.dicom.series.series_warnings import left_out_warnings, pixel_warnings
from inference_service.formats.dicom.series.slice_selection import select_slices
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
        *pixel_warnings(slices),
        *copy_warnings,
        *left_out_warnings(headers.instances, series, set_aside, len(files)),
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
