"""Warnings for the user of a mask about the pixels of a series, and about files that are no part of it."""

from collections import Counter
from collections.abc import Sequence

from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.dicom.instance import ExclusionReason, Instance, Slice
from inference_service.formats.dicom.pixels.frame_stack import background_value, padding_range
from inference_service.formats.dicom.series.geometry import instances_of
from inference_service.formats.dicom.transfer_syntax import ALWAYS_LOSSY


def pixel_warnings(slices: Sequence[Slice]) -> list[ReportWarning]:
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


def left_out_warnings(
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
