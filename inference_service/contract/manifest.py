"""What a model's `manifest.json` says: all that inference needs to know but the weights.

It can say what nnU-Net's plans and a MONAI bundle say about inference; `docs/models.md` shows how.
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
        raise ValueError(f"expected a range from low to high, got {list(bounds)}")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_increasing)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CtIntensity(_Strict):
    """Clip to `clip`, subtract `mean`, divide by `std`: nnU-Net's CTNormalization with the data set's fingerprint."""

    kind: Literal["ct"]
    clip: Range
    mean: float
    std: PositiveFloat


class ZScoreIntensity(_Strict):
    """Subtract the volume's own mean and divide by its standard deviation: nnU-Net's ZScoreNormalization, MONAI's
    NormalizeIntensity; `nonzero_only` takes and normalises voxels other than 0 alone."""

    kind: Literal["z_score"]
    nonzero_only: bool = False


class PercentilesIntensity(_Strict):
    """Map the volume's own `percentiles` to `output`: MONAI's ScaleIntensityRangePercentiles."""

    kind: Literal["percentiles"]
    percentiles: Annotated[tuple[Percent, Percent], AfterValidator(_increasing)]
    output: Range = (0.0, 1.0)
    clip: bool = True


class MinMaxIntensity(_Strict):
    """Map the volume's own minimum and maximum to `output`: MONAI's ScaleIntensity, nnU-Net's RescaleTo01."""

    kind: Literal["min_max"]
    output: Range = (0.0, 1.0)


class FixedRangeIntensity(_Strict):
    """Map the range `input` to `output`: MONAI's ScaleIntensityRange, nnU-Net's RGBTo01 with input 0…255."""

    kind: Literal["fixed_range"]
    input: Range
    output: Range = (0.0, 1.0)
    clip: bool = True


class NoIntensity(_Strict):
    """Feed the values as they are: nnU-Net's NoNormalization."""

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
    """A coded concept, by the limits of DICOM PS3.3 Table 8.8-1; such as SCT, 39607008, Lung."""

    scheme: str = Field(pattern=r"^[!-\[\]-~]{1,16}$", description="Coding scheme, such as SCT for SNOMED CT.")
    value: str = Field(pattern=r"^[!-\[\]-~]{1,16}$", description="The concept's code in that scheme.")
    meaning: str = Field(pattern=_DICOM_TEXT, description="In words.")


class Label(_Strict):
    """What one output channel of the network stands for."""

    name: str = Field(pattern=_DICOM_TEXT)
    value: int = Field(ge=0, le=65535, description="The value in the mask.")
    category: CodedConcept | None = Field(
        None,
        description="What kind of thing it is, for DICOM: one of PS3.16 CID 7150, such as SCT, 123037004, Anatomical "
        "Structure. None takes SCT, 85756007, Tissue.",
    )
    type: CodedConcept | None = Field(
        None, description="What it is, for DICOM: such as SCT, 39607008, Lung. None takes SCT, 85756007, Tissue."
    )


class _ComponentStep(_Strict):
    labels: tuple[int, ...] = Field(min_length=1)
    becomes: Annotated[int, Field(ge=0, le=65535)] | Literal["surroundings"] = Field(
        0,
        description="The value that the dropped voxels get; surroundings: for each component the one that "
        "it shares most voxel faces with.",
    )


class LargestComponent(_ComponentStep):
    """Keep each label's largest 26-connected component alone."""

    step: Literal["largest_component"]


class RemoveSmallComponents(_ComponentStep):
    """Drop the 26-connected components of each label that are smaller than `min_volume_ml`, or than `min_share` of its
    largest one."""

    step: Literal["remove_small"]
    min_volume_ml: PositiveFloat
    min_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The least share of the label's largest component: of an organ that a scan may show in two parts, "
        "such as the base of a lung, both may stay.",
    )


class NonzeroCrop(_Strict):
    """Leave out what surrounds the voxels that are not 0, but for `margin_mm`: nnU-Net's crop to non-zero."""

    kind: Literal["nonzero"]
    margin_mm: NonNegativeFloat = 0.0


class BodyCrop(_Strict):
    """Leave out what surrounds the largest connected region above `threshold`, in the scan's unit (HU for CT), but for
    `margin_mm`."""

    kind: Literal["body"]
    threshold: float = -500.0
    margin_mm: NonNegativeFloat = 10.0


Crop = Annotated[NonzeroCrop | BodyCrop, Field(discriminator="kind")]
PostProcessing = Annotated[LargestComponent | RemoveSmallComponents, Field(discriminator="step")]


class Manifest(_Strict):
    """Everything about a model but its weights."""

    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=VERSION_PATTERN)
    description: str = Field(min_length=1)
    licence: str = Field(min_length=1, description="SPDX identifier of the weights' licence.")
    intended_use: str = Field(min_length=1)
    modality: Literal["CT", "MR", "PT", "US", "other"]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of model.onnx.")

    channels: tuple[Channel, ...] = Field(min_length=1, description="Input channels, in the network's order.")
    orientation: str = Field(
        description="Towards where each of the network's spatial axes runs, for example RAS, or SPL for z, y, x arrays."
    )
    spacing_mm: Spacing = Field(description="Voxel size along the network's axes.")
    interpolation: Literal["linear", "area", "cubic"] = Field(
        "linear",
        description="How the scan is resampled to spacing_mm. area: the mean of what a coarser voxel covers (OpenCV's "
        "INTER_AREA), linear along axes that become finer; cubic: an interpolating spline (nnU-Net).",
    )
    intensity_before_resampling: bool = Field(
        False,
        description="Whether intensities are mapped on the scan's own grid, before it is resampled (nnU-Net), rather "
        "than after (most MONAI bundles).",
    )
    separate_axis_above: PositiveFloat | None = Field(
        None,
        description="Where the scan's largest spacing exceeds its smallest by more than this factor, nearest-neighbour "
        "interpolation along that axis (3 in nnU-Net).",
    )

    crop: Crop | None = Field(
        None,
        description="What of the scan is looked at at all; the rest is 0 in the mask. The grid of spacing_mm, and "
        "intensities that depend on the whole scan, are those of what is left.",
    )

    window: WindowShape
    overlap: float = Field(0.5, ge=0, lt=1, description="Share of a window that its neighbour covers again.")
    placement: Literal["snap", "even"] = Field(
        "snap", description="snap: fixed step, the last window pushed back inside (MONAI); even: equal steps (nnU-Net)."
    )
    blending: Literal["gaussian", "constant"] = "gaussian"
    padding_value: float = Field(
        0.0, description="What surrounds a volume smaller than the window, after the intensities."
    )

    mirror_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] = Field(
        (),
        description="Test-time augmentation: each window is run once for every combination of these axes flipped, and "
        "the logits are averaged (nnU-Net's mirroring). Three axes take eight times as long.",
    )
    precisions: tuple[Precision, ...] = Field(
        ("fp32",),
        description="What the network may be computed in: bf16 only where `models verify --precision bf16` has shown "
        "that it agrees with fp32.",
    )

    time_limit_s: PositiveInt | None = Field(
        None, description="A job of this model that runs longer fails with time_limit; TIME_LIMIT_S at most."
    )
    activation: Literal["softmax", "sigmoid"] = Field(
        description="softmax: the label of the highest output channel; sigmoid: every channel above 0.5 writes its "
        "label, later channels over earlier ones."
    )
    labels: tuple[Label, ...] = Field(min_length=1, description="One for each output channel, in the network's order.")
    postprocessing: tuple[PostProcessing, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.orientation) != len(_AXES) or any(len(set(self.orientation) & axis) != 1 for axis in _AXES):
            raise ValueError(f"orientation must name each of L/R, P/A and I/S once, got {self.orientation!r}")
        if len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ValueError(f"mirror_axes must differ, got {list(self.mirror_axes)}")
        if "fp32" not in self.precisions:
            raise ValueError("precisions must hold fp32, which every provider computes in")
        values = [label.value for label in self.labels]
        if len(set(values)) != len(values) or len({label.name for label in self.labels}) != len(values):
            raise ValueError("labels must differ in name and in value")
        if self.activation == "sigmoid" and 0 in values:
            raise ValueError("a sigmoid model has no background channel: label value 0 is what no channel claims")
        unknown = {value for step in self.postprocessing for value in step.labels} - set(values)
        unknown |= {step.becomes for step in self.postprocessing if step.becomes != "surroundings"} - {0, *values}
        if unknown:
            raise ValueError(f"postprocessing names label values that the model does not have: {sorted(unknown)}")
        return self
