"""The part of a scan that is segmented."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from inference_service.contract.manifest_types import LabelValue, Strict
from inference_service.contract.task_message import NAME_PATTERN, VERSION_PATTERN


class NonzeroCrop(Strict):
    """Crops the scan to the voxels that are not 0 in all channels, plus `margin_mm`: nnU-Net's crop to non-zero.

    With `prepared`, the values and the grid are those of the resampled scan, before its intensities are mapped
    (nnU-Net within TotalSegmentator).
    """

    kind: Literal["nonzero"]
    margin_mm: NonNegativeFloat = 0.0
    prepared: bool = False


class BodyCrop(Strict):
    """Crops the scan to its largest connected region above `threshold`, in the scan's unit (HU for CT), plus
    `margin_mm`."""

    kind: Literal["body"]
    threshold: float = -500.0
    margin_mm: NonNegativeFloat = 10.0


class ForegroundCrop(Strict):
    """Crops to the voxels above `threshold`, plus `margin_voxels`: MONAI's CropForeground.

    The values and the grid are those of the scan, whose edge limits the box. With `prepared` they are those that the
    network gets: the box may exceed the image, which is padded with 0.
    """

    kind: Literal["foreground"]
    threshold: float = 0.0
    margin_voxels: NonNegativeInt = 0
    divisor: PositiveInt = Field(
        1, description="The box is widened until its size is a multiple of this (k_divisible)."
    )
    channel: NonNegativeInt | None = Field(None, description="The channel that is looked at; null: all of them.")
    prepared: bool = False


class ModelCrop(Strict):
    """Crops to what another installed model finds in the scan, plus `margin_mm`, cut to whole voxels of the scan, and
    `margin_share`. With `min_plane_share`, only planes count in which it finds more."""

    kind: Literal["model"]
    model: str = Field(pattern=NAME_PATTERN)
    version: str | None = Field(None, pattern=VERSION_PATTERN)
    labels: tuple[LabelValue, ...] = Field((), description="The labels that count; none: all except 0.")
    margin_mm: NonNegativeFloat = 20.0
    margin_share: NonNegativeFloat = Field(
        0.0, description="Further margin on each side, as a share of the size of the found region along that axis."
    )
    min_plane_share: float = Field(
        0.0, ge=0, lt=1, description="Share of a plane's voxels that must be exceeded for the plane to count."
    )
    if_empty: Literal["whole", "nothing"] = Field(
        "whole",
        description="What is segmented where the other model finds nothing: the whole scan, or nothing, as in "
        "TotalSegmentator.",
    )


Crop = Annotated[NonzeroCrop | BodyCrop | ForegroundCrop | ModelCrop, Field(discriminator="kind")]


def is_prepared(crop: Crop) -> bool:
    """Returns True for a crop of the scan on the network's grid."""
    return isinstance(crop, NonzeroCrop | ForegroundCrop) and crop.prepared
