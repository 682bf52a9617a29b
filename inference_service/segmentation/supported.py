"""Refuses what a manifest may describe and the segmentation does not do yet."""

from inference_service.contract.crops import BodyCrop, NonzeroCrop
from inference_service.contract.intensity import (
    ClipIntensity,
    ClipPercentilesIntensity,
    Intensity,
    LinearIntensity,
    ZScoreIntensity,
)
from inference_service.contract.part import Part
from inference_service.core.errors import ModelInvalid


def check_supported(part: Part) -> None:
    """Checks that all steps of a part are supported.

    Raises:
        ModelInvalid: A step is not.
    """
    unsupported = []
    if part.grid != "edges":
        unsupported.append(f"grid {part.grid}")
    if part.crop is not None and not isinstance(part.crop, NonzeroCrop | BodyCrop):
        unsupported.append(f"crop {part.crop.kind}")
    for channel in part.channels:
        if len(channel.intensities) > 1:
            unsupported.append("several intensities of a channel")
        unsupported += [f"intensity {each.kind}" for each in channel.intensities if not _is_supported(each)]
    if unsupported:
        raise ModelInvalid(f"this version of the service does not support: {', '.join(unsupported)}")


def _is_supported(intensity: Intensity) -> bool:
    if isinstance(intensity, ZScoreIntensity) and intensity.fill_holes:
        return False
    if getattr(intensity, "statistics", "channel") != "channel":
        return False
    return not isinstance(intensity, ClipIntensity | ClipPercentilesIntensity | LinearIntensity)
