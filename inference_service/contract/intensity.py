"""Mappings of a scan's values to the intensities that a network was trained on."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from inference_service.contract.manifest_types import PercentRange, Range, Strict

Statistics = Annotated[
    Literal["channel", "all_channels"],
    Field(
        description="Where the statistics come from: each channel by itself, or all channels together (MONAI's "
        "channel_wise=False)."
    ),
]


class CtIntensity(Strict):
    """Clips to `clip`, subtracts `mean` and divides by `std`: nnU-Net's CTNormalization, with the values of the data
    set's fingerprint."""

    kind: Literal["ct"]
    clip: Range
    mean: float
    std: PositiveFloat


class ZScoreIntensity(Strict):
    """Subtracts the scan's mean and divides by its standard deviation: nnU-Net's ZScoreNormalization, MONAI's
    NormalizeIntensity. With `nonzero_only`, voxels with the value 0 are neither counted nor changed."""

    kind: Literal["z_score"]
    nonzero_only: bool = False
    fill_holes: bool = Field(
        False,
        description="With nonzero_only: voxels are left out only where all channels are 0, and not where other voxels "
        "enclose them (nnU-Net's mask for normalisation).",
    )
    statistics: Statistics = "channel"


class PercentilesIntensity(Strict):
    """Maps two percentiles of the scan to the range `output`: MONAI's ScaleIntensityRangePercentiles."""

    kind: Literal["percentiles"]
    percentiles: PercentRange
    output: Range = (0.0, 1.0)
    clip: bool = True
    statistics: Statistics = "channel"


class MinMaxIntensity(Strict):
    """Maps the scan's minimum and maximum to the range `output`: MONAI's ScaleIntensity, nnU-Net's RescaleTo01."""

    kind: Literal["min_max"]
    output: Range = (0.0, 1.0)
    statistics: Statistics = "channel"


class FixedRangeIntensity(Strict):
    """Maps the range `input` to the range `output`: MONAI's ScaleIntensityRange, nnU-Net's RGBTo01 for 0…255."""

    kind: Literal["fixed_range"]
    input: Range
    output: Range = (0.0, 1.0)
    clip: bool = True


class ClipIntensity(Strict):
    """Clips to a range."""

    kind: Literal["clip"]
    range: Range


class ClipPercentilesIntensity(Strict):
    """Clips to two percentiles of the scan: MONAI's ClipIntensityPercentiles."""

    kind: Literal["clip_percentiles"]
    percentiles: PercentRange
    statistics: Statistics = "channel"


class LinearIntensity(Strict):
    """Multiplies by `scale` and adds `offset`: MONAI's NormalizeIntensity with a given subtrahend and divisor, and
    ScaleIntensity with a factor."""

    kind: Literal["linear"]
    scale: float = 1.0
    offset: float = 0.0


class NoIntensity(Strict):
    """Leaves the values as they are: nnU-Net's NoNormalization."""

    kind: Literal["none"]


Intensity = Annotated[
    CtIntensity
    | ZScoreIntensity
    | PercentilesIntensity
    | MinMaxIntensity
    | FixedRangeIntensity
    | ClipIntensity
    | ClipPercentilesIntensity
    | LinearIntensity
    | NoIntensity,
    Field(discriminator="kind"),
]
