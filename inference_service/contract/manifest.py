"""The schema of a model's `manifest.json`, which describes how to run its network.

It covers what nnU-Net's plans and MONAI bundles specify for inference; `docs/models.md` shows how.
"""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from inference_service.contract.task_message import NAME_PATTERN, VERSION_PATTERN
from inference_service.core.execution import Precision

# No control character, and no backslash, which separates values in DICOM.
_DICOM_TEXT = r"^[^\x00-\x1f\x7f\\]{1,64}$"
_AXES = ({"L", "R"}, {"P", "A"}, {"I", "S"})
Spacing = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Percent = Annotated[float, Field(ge=0, le=100)]
WindowShape = tuple[PositiveInt, PositiveInt, PositiveInt]


def _increasing(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] >= bounds[1]:
        raise ValueError(f"expected two increasing numbers, got {list(bounds)}")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_increasing)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CtIntensity(_Strict):
    """Clips to `clip`, subtracts `mean` and divides by `std`: nnU-Net's CTNormalization, with the values of the data
    set's fingerprint."""

    kind: Literal["ct"]
    clip: Range
    mean: float
    std: PositiveFloat


class ZScoreIntensity(_Strict):
    """Subtracts the scan's mean and divides by its standard deviation: nnU-Net's ZScoreNormalization, MONAI's
    NormalizeIntensity. With `nonzero_only`, voxels with the value 0 are neither counted nor changed."""

    kind: Literal["z_score"]
    nonzero_only: bool = False


class PercentilesIntensity(_Strict):
    """Maps two percentiles of the scan to the range `output`: MONAI's ScaleIntensityRangePercentiles."""

    kind: Literal["percentiles"]
    percentiles: Annotated[tuple[Percent, Percent], AfterValidator(_increasing)]
    output: Range = (0.0, 1.0)
    clip: bool = True


class MinMaxIntensity(_Strict):
    """Maps the scan's minimum and maximum to the range `output`: MONAI's ScaleIntensity, nnU-Net's RescaleTo01."""

    kind: Literal["min_max"]
    output: Range = (0.0, 1.0)


class FixedRangeIntensity(_Strict):
    """Maps the range `input` to the range `output`: MONAI's ScaleIntensityRange, nnU-Net's RGBTo01 for 0…255."""

    kind: Literal["fixed_range"]
    input: Range
    output: Range = (0.0, 1.0)
    clip: bool = True


class NoIntensity(_Strict):
    """Leaves the values as they are: nnU-Net's NoNormalization."""

    kind: Literal["none"]


Intensity = Annotated[
    CtIntensity | ZScoreIntensity | PercentilesIntensity | MinMaxIntensity | FixedRangeIntensity | NoIntensity,
    Field(discriminator="kind"),
]


class Channel(_Strict):
    """One input channel of the network."""

    name: str = Field(min_length=1, max_length=64)
    intensity: Intensity


class CodedConcept(_Strict):
    """A coded concept as in DICOM PS3.3 Table 8.8-1, for example SCT, 39607008, Lung."""

    scheme: str = Field(pattern=r"^[!-\[\]-~]{1,16}$", description="Coding scheme designator; SCT is SNOMED CT.")
    value: str = Field(pattern=r"^[!-\[\]-~]{1,16}$", description="Code value in the coding scheme.")
    meaning: str = Field(pattern=_DICOM_TEXT, description="Code meaning, as text for people.")


class Label(_Strict):
    """The label that belongs to one output channel of the network."""

    name: str = Field(pattern=_DICOM_TEXT)
    value: int = Field(ge=0, le=65535, description="Value of the label in the mask.")
    category: CodedConcept | None = Field(
        None,
        description="Segmented Property Category for DICOM, from PS3.16 CID 7150, for example SCT, 123037004, "
        "Anatomical Structure. Default: SCT, 85756007, Tissue.",
    )
    type: CodedConcept | None = Field(
        None,
        description="Segmented Property Type for DICOM, for example SCT, 39607008, Lung. Default: SCT, 85756007, "
        "Tissue.",
    )


class _ComponentStep(_Strict):
    labels: tuple[int, ...] = Field(min_length=1)
    becomes: Annotated[int, Field(ge=0, le=65535)] | Literal["surroundings"] = Field(
        0,
        description="New value of the removed voxels. surroundings: for each component, the value with which it shares "
        "the most voxel faces.",
    )


class LargestComponent(_ComponentStep):
    """Removes all but the largest 26-connected component of each label."""

    step: Literal["largest_component"]


class RemoveSmallComponents(_ComponentStep):
    """Removes the 26-connected components of each label that are smaller than `min_volume_ml`, or smaller than
    `min_share` of its largest component."""

    step: Literal["remove_small"]
    min_volume_ml: PositiveFloat
    min_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Smallest size that is kept, as a share of the label's largest component. It lets both parts stay "
        "of an organ that a scan may show in two parts, such as the base of a lung.",
    )


class NonzeroCrop(_Strict):
    """Crops the scan to the voxels that are not 0, plus `margin_mm`: nnU-Net's crop to non-zero."""

    kind: Literal["nonzero"]
    margin_mm: NonNegativeFloat = 0.0


class BodyCrop(_Strict):
    """Crops the scan to its largest connected region above `threshold`, in the scan's unit (HU for CT), plus
    `margin_mm`."""

    kind: Literal["body"]
    threshold: float = -500.0
    margin_mm: NonNegativeFloat = 10.0


Crop = Annotated[NonzeroCrop | BodyCrop, Field(discriminator="kind")]
PostProcessing = Annotated[LargestComponent | RemoveSmallComponents, Field(discriminator="step")]


class Manifest(_Strict):
    """Describes a model, the preparation of its input and the conversion of its output to a mask."""

    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=VERSION_PATTERN)
    description: str = Field(min_length=1)
    licence: str = Field(min_length=1, description="SPDX identifier of the licence of the weights.")
    intended_use: str = Field(min_length=1)
    modality: Literal["CT", "MR", "PT", "US", "other"]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of model.onnx.")

    channels: tuple[Channel, ...] = Field(min_length=1, description="Input channels in the order of the network.")
    orientation: str = Field(
        description="Direction of each spatial axis of the network, for example RAS, or SPL for z, y, x arrays."
    )
    spacing_mm: Spacing = Field(description="Voxel size along each axis of the network, in mm.")
    interpolation: Literal["linear", "area", "cubic"] = Field(
        "linear",
        description="Interpolation of the scan to spacing_mm. area: each coarser voxel is the mean of the voxels that "
        "it covers (OpenCV's INTER_AREA); axes that become finer are interpolated linearly. cubic: an interpolating "
        "spline (nnU-Net).",
    )
    intensity_before_resampling: bool = Field(
        False,
        description="Whether intensities are normalised before resampling (nnU-Net) or after it (most MONAI bundles).",
    )
    separate_axis_above: PositiveFloat | None = Field(
        None,
        description="If the scan's largest spacing exceeds its smallest by more than this factor, the axis with the "
        "largest spacing is interpolated by nearest neighbour (nnU-Net: 3).",
    )

    crop: Crop | None = Field(
        None,
        description="Region of the scan that is segmented; the mask is 0 outside it. Resampling and intensity "
        "statistics use the cropped scan.",
    )

    window: WindowShape
    overlap: float = Field(0.5, ge=0, lt=1, description="Share of a window that overlaps the next one.")
    placement: Literal["snap", "even"] = Field(
        "snap",
        description="Placement of the windows. snap: fixed step, and the last window is moved back into the volume "
        "(MONAI). even: equal steps (nnU-Net).",
    )
    blending: Literal["gaussian", "constant"] = "gaussian"
    padding_value: float = Field(
        0.0, description="Value that pads a volume smaller than the window, in normalised intensities."
    )

    mirror_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] = Field(
        (),
        description="Axes for test-time augmentation (nnU-Net's mirroring): each window runs once for every "
        "combination of these axes mirrored, and the logits are averaged. Three axes take eight times as long.",
    )
    precisions: tuple[Precision, ...] = Field(
        ("fp32",),
        description="Precisions in which the network may run. Add bf16 only after `models verify --precision bf16` has "
        "shown that its masks agree with fp32.",
    )

    time_limit_s: PositiveInt | None = Field(
        None,
        description="Seconds after which a job with this model fails with time_limit, if lower than TIME_LIMIT_S.",
    )
    activation: Literal["softmax", "sigmoid"] = Field(
        description="How the output channels become a mask. softmax: the label of the highest channel. sigmoid: every "
        "channel above 0.5 writes its label; later channels overwrite earlier ones."
    )
    labels: tuple[Label, ...] = Field(
        min_length=1, description="One label for each output channel, in the order of the network."
    )
    postprocessing: tuple[PostProcessing, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.orientation) != len(_AXES) or any(len(set(self.orientation) & axis) != 1 for axis in _AXES):
            raise ValueError(
                f"orientation must contain one letter of each of L/R, P/A and I/S, got {self.orientation!r}"
            )
        if len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ValueError(f"mirror_axes must be unique, got {list(self.mirror_axes)}")
        if "fp32" not in self.precisions:
            raise ValueError("precisions must contain fp32, which every provider supports")
        values = [label.value for label in self.labels]
        if len(set(values)) != len(values) or len({label.name for label in self.labels}) != len(values):
            raise ValueError("labels must have unique names and unique values")
        if self.activation == "sigmoid" and 0 in values:
            raise ValueError("a sigmoid model has no background channel: label value 0 is not allowed")
        unknown = {value for step in self.postprocessing for value in step.labels} - set(values)
        unknown |= {step.becomes for step in self.postprocessing if step.becomes != "surroundings"} - {0, *values}
        if unknown:
            raise ValueError(f"postprocessing uses label values that the model does not have: {sorted(unknown)}")
        return self
