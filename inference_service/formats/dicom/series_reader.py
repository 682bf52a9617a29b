"""From files, some of them DICOM, to the one volume in them: what is set aside, where it lies, what was done to it."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from inference_service.contract.task_message import Tolerance
from inference_service.core.errors import InputTooLarge, NotAVolume
from inference_service.formats.dicom.frame_stack import background, padding_of, stack_slices
from inference_service.formats.dicom.header import looks_like_dicom, read_image
from inference_service.formats.dicom.image import LONGEST_AXIS, Image, Reason, Unusable
from inference_service.formats.dicom.pixel_data import LOSSY, check_decodable
from inference_service.formats.dicom.series_geometry import Series, Slice, lay_out
from inference_service.formats.dicom.series_selection import choose_images
from inference_service.formats.read_limits import ReadLimits, RequireMemory
from inference_service.imaging.geometry import Volume
from inference_service.imaging.slice_alignment import AlignedVolume, align_slices, aligned_shape
from inference_service.imaging.slice_spacing import EvenlySpacedVolume, even_plane_count, space_evenly


@dataclass(frozen=True)
class DicomVolume:
    """The volume of a series.

    Attributes:
        volume: On the grid that its mask gets.
        aligned: For the network where that grid is sheared; None where it is straight.
        evenly_spaced: The way back to the slices where that grid is not on them; None where it is.
        modality: As the series states it; empty where it does not.
        slices: The frames that it was made of, along its third axis; one for each plane unless they were uneven.
        set_aside: How many files are no part of it, by reason.
        warnings: What a reader of the mask should know.
    """

    volume: Volume
    aligned: AlignedVolume | None
    evenly_spaced: EvenlySpacedVolume | None
    modality: str
    slices: tuple[Slice, ...]
    set_aside: Counter[Reason]
    warnings: tuple[str, ...]


def read_series(
    files: Sequence[Path],
    limits: ReadLimits,
    *,
    series_uid: str | None = None,
    tolerated: Collection[Tolerance] = (),
    threads: int = 1,
) -> DicomVolume:
    """Reads the series that a number of files hold.

    Args:
        files: In any order, of any names; what is no DICOM is set aside.
        limits: How much they may take.
        series_uid: Of the series that is meant, should there be several.
        tolerated: What of its geometry is mended rather than refused.
        threads: Decode slices.

    Raises:
        InputError: There is not exactly one readable volume; the subclass says why.
    """
    images, unusable, aside = _sorted_out(files, limits.max_bytes, limits.require_memory)
    try:
        chosen, aside = choose_images(images, series_uid, aside)
    except NotAVolume:
        if unusable:
            raise unusable[0].error from unusable[0].error.__cause__
        raise
    _check_usable(unusable, chosen)
    aside[Reason.UNREADABLE] += len(unusable)
    series = lay_out(chosen, tolerated)
    _check_size(series, limits.max_voxels)
    for image in chosen:
        check_decodable(image)
    stacked = stack_slices(series.slices, require_memory=limits.require_memory, threads=threads)
    warnings = [*series.warnings, *_warnings(chosen)]
    unread = aside[Reason.UNREADABLE] + aside[Reason.NOT_DICOM] + aside[Reason.LOOKUP_TABLE]
    if unread:
        warnings.append(
            f"{unread} of the {len(files)} files are no DICOM that can be read here: had one been the first or the "
            "last slice, it would not be missed"
        )
    alike = _others_alike(images, chosen)
    if alike:
        warnings.append(
            f"{alike} images of the series' own planes are called something else than slices, and are left out: had "
            "one been the first or the last slice, it would not be missed"
        )
    first = series.slices[0].image
    if stacked.padded_voxels:
        warnings.append(f"{stacked.padded_voxels} voxels are padding, and got the value {background(first):g}")
    volume, aligned, evenly_spaced = _regrid(Volume(stacked.voxels, series.affine), series, limits.require_memory)
    return DicomVolume(
        volume=volume,
        aligned=aligned,
        evenly_spaced=evenly_spaced,
        modality=first.modality,
        slices=series.slices,
        set_aside=+aside,
        warnings=tuple(warnings),
    )


def _others_alike(images: Sequence[Image], chosen: Sequence[Image]) -> int:
    """How many images that were left out are of the same series, orientation and size as those that were not."""

    def kind(image: Image) -> tuple[object, ...]:
        plane = image.planes[0]
        directions = (round(cosine, 3) for cosine in (*plane.along_row, *plane.along_column))
        return image.series_uid, image.layout.rows, image.layout.columns, *directions

    kinds, taken = {kind(image) for image in chosen}, {image.path for image in chosen}
    return sum(image.path not in taken and bool(image.planes) and kind(image) in kinds for image in images)


def _sorted_out(
    files: Sequence[Path], max_bytes: int, require_memory: RequireMemory
) -> tuple[list[Image], list[Unusable], Counter[Reason]]:
    """What each file is; what deflated ones expand to is bounded for all together."""
    images, unusable, aside = [], [], Counter[Reason]()
    for path in files:
        if not looks_like_dicom(path):
            aside[Reason.NOT_DICOM] += 1
            continue
        found = read_image(path, max_bytes=max_bytes, require_memory=require_memory)
        if isinstance(found, Image):
            images.append(found)
            max_bytes -= found.expanded_bytes
        elif isinstance(found, Unusable):
            unusable.append(found)
        else:
            aside[found] += 1
    return images, unusable, aside


def _check_usable(unusable: Sequence[Unusable], chosen: Sequence[Image]) -> None:
    """Raises what is wrong with a file of the series that is meant."""
    ours = [each.error for each in unusable if each.series_uid == chosen[0].series_uid]
    if ours:
        raise type(ours[0])(f"{ours[0]} ({len(ours)} of the series' {len(ours) + len(chosen)} files)") from ours[0]


def _check_size(series: Series, max_voxels: int) -> None:
    shape = aligned_shape(series.shape, series.shifts_px)
    if series.uneven:
        shape = (*shape[:2], even_plane_count(series.heights_mm, series.spacing_mm))
    voxels = max(prod(shape), prod(series.shape))
    if voxels > max_voxels:
        raise InputTooLarge(f"the series has {voxels} voxels; this service takes at most {max_voxels}")
    if max(shape) > LONGEST_AXIS:
        raise InputTooLarge(f"the series has an axis of {max(shape)} voxels; this service takes at most {LONGEST_AXIS}")


def _warnings(images: Sequence[Image]) -> list[str]:
    warnings = []
    lossy = sum(image.lossy or image.transfer_syntax in LOSSY for image in images)
    if lossy:
        warnings.append(f"{lossy} of the series' {len(images)} images were compressed with loss")
    if any(image.layout.padding and padding_of(image, plane) is None for image in images for plane in image.planes):
        warnings.append("the series calls values padding that are tissue in CT: they were taken as they are")
    if any(image.inverted for image in images):
        warnings.append("low values are meant to be shown bright (MONOCHROME1): values were taken as they are")
    return warnings


def _regrid(
    volume: Volume, series: Series, require_memory: RequireMemory
) -> tuple[Volume, AlignedVolume | None, EvenlySpacedVolume | None]:
    """The volume on the grid that its mask gets, the straight one that the network is to see instead, the way back."""
    aligned = None
    itemsize = volume.voxels.dtype.itemsize
    if series.tilted:
        require_memory(prod(aligned_shape(volume.shape, series.shifts_px)) * itemsize)
        aligned = align_slices(volume, series.shifts_px, background=background(series.slices[0].image))
    if not series.uneven:
        return volume, aligned, None
    # No grid holds slices at uneven distances: the mask lies on the even ones, which are straight.
    straight = aligned.volume if aligned else volume
    require_memory(prod((*straight.shape[:2], even_plane_count(series.heights_mm, series.spacing_mm))) * itemsize)
    origins = aligned.origins if aligned else np.zeros((len(series.slices), 2), dtype=np.intp)
    evenly_spaced = space_evenly(
        straight, series.heights_mm, series.spacing_mm, origins=origins, slice_shape=volume.shape[:2]
    )
    return evenly_spaced.volume, None, evenly_spaced
