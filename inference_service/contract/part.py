"""A part of a model: a network, or folds of one, from the preparation of its input to the labels that it decides."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter, WrapValidator, model_validator

from inference_service.contract.crops import Crop, ForegroundCrop, NonzeroCrop, is_prepared
from inference_service.contract.intensity import Intensity
from inference_service.contract.manifest_types import LabelValue, Modality, Sha256, Strict
from inference_service.contract.task_message import ChannelName

_AXES = ({"L", "R"}, {"P", "A"}, {"I", "S"})
_FILE_AXES = {"i", "j", "k"}
# A plain name: no folder, no hidden file.
_FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"
NETWORK_FILE = "model.onnx"
"""The file of a model's only network."""

GridSpacing = tuple[PositiveFloat | None, PositiveFloat | None, PositiveFloat | None]
WindowSize = tuple[PositiveInt | None, PositiveInt | None, PositiveInt | None]
GridSize = tuple[PositiveInt, PositiveInt, PositiveInt]
FileName = Annotated[str, Field(pattern=_FILE_NAME)]
Interpolated = Literal["nearest", "linear", "area", "quadratic", "cubic"]


_SeveralIntensities = Annotated[tuple[Intensity, ...], Field(min_length=1)]
_INTENSITY = TypeAdapter[Any](Intensity)
_INTENSITIES = TypeAdapter[Any](_SeveralIntensities)


def _validate_intensity(value: object, handler: object) -> object:
    """Validates one mapping or several, so that an error names a field of the manifest and no branch of the union."""
    return (_INTENSITIES if isinstance(value, list | tuple) else _INTENSITY).validate_python(value)


_CROP = TypeAdapter[Any](Crop | None)
_CROPS = TypeAdapter[Any](tuple[Crop, Crop])


def _validate_crop(value: object, handler: object) -> object:
    """Validates one crop or two, so that an error names a field of the manifest and no branch of the union."""
    return (_CROPS if isinstance(value, list | tuple) else _CROP).validate_python(value)


class Channel(Strict):
    """One input channel of the network."""

    name: ChannelName = Field(
        description="Name by which a request refers to the channel's scan. Channels of one name get the same scan."
    )
    modality: Modality | None = Field(
        None, description="Modality of the channel's scan. Default: the modality of the model."
    )
    intensity: Annotated[Intensity | _SeveralIntensities, WrapValidator(_validate_intensity)] = Field(
        description="Mappings are applied one after the other."
    )

    @property
    def intensities(self) -> tuple[Intensity, ...]:
        """The mappings of the channel, in order."""
        return self.intensity if isinstance(self.intensity, tuple) else (self.intensity,)


class NetworkFile(Strict):
    """A network's ONNX file, in the folder of the manifest."""

    file: FileName
    sha256: Sha256
    external_data: dict[FileName, Sha256] = Field(
        default_factory=dict, description="SHA-256 of each file that holds tensors of the network."
    )
    output: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Name of the output with the logits; null: the first one. Deep supervision gives further ones.",
    )


class Gaussian(Strict):
    """Weights that fall from the centre of a window like a Gaussian."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: PositiveFloat = Field(0.125, description="Standard deviation as a share of the window.")
    centre: Literal["middle", "voxel"] = Field(
        "middle",
        description="middle: the middle of the window (MONAI). voxel: the voxel at half of its size, rounded down "
        "(nnU-Net).",
    )


_BlendingName = Literal["gaussian", "constant"]
_BLENDING_NAME = TypeAdapter[Any](_BlendingName)


def _validate_blending(value: object, handler: object) -> object:
    """Validates a name or a Gaussian, so that an error names a field of the manifest and no branch of the union."""
    return _BLENDING_NAME.validate_python(value) if isinstance(value, str) else Gaussian.model_validate(value)


Blending = Annotated[_BlendingName | Gaussian, WrapValidator(_validate_blending)]


class OutputChannel(Strict):
    """The label that a channel of the network's output decides."""

    channel: NonNegativeInt
    value: LabelValue | None = Field(description="Value in the mask; null: the channel is left out.")
    threshold: float = Field(0.5, gt=0, lt=1, description="Probability above which a sigmoid channel writes its value.")


class Part(Strict):
    """A network, or several that are averaged, with the preparation of its input and the decision on labels."""

    channels: tuple[Channel, ...] = Field(min_length=1, description="Input channels in the order of the network.")
    orientation: str = Field(
        description="Direction of each spatial axis of the network, for example RAS, or SPL for z, y, x arrays. Or the "
        "axes of the file, in any order and never flipped: kji is that of SimpleITK's arrays (nnU-Net)."
    )
    spacing_mm: GridSpacing = Field(
        description="Voxel size along each axis of the network, in mm; null: that of the scan."
    )
    size_voxels: GridSize | None = Field(
        None,
        description="Voxels along each axis to which the scan is resampled, whatever its spacing: spacing_mm is null "
        "then (MONAI's Resize).",
    )
    box_voxels: GridSize | None = Field(
        None,
        description="Voxels along each axis of a box around the centre of the resampled scan. It is padded with 0, or "
        "cropped, to this box before intensities are mapped, or after it with intensity_before_resampling (MONAI's "
        "ResizeWithPadOrCrop; with a spacing of 1 mm, FreeSurfer's conform).",
    )
    grid: Literal["edges", "first_centre", "centres"] = Field(
        "edges",
        description="How the grid at spacing_mm lies on the scan. edges: the outer edges coincide, and the spacing "
        "changes a little so that they can (nnU-Net). first_centre: the centres of the first voxels coincide, and the "
        "spacing is exact (MONAI's Spacing). centres: the centres of the first and of the last voxels coincide, and "
        "the number of voxels is that of edges (SciPy's zoom, TotalSegmentator).",
    )
    interpolation: Interpolated = Field(
        "linear",
        description="Interpolation of the scan to spacing_mm. area: each coarser voxel is the mean of the voxels that "
        "it covers (OpenCV's INTER_AREA); axes that become finer are interpolated linearly. quadratic, cubic: the "
        "interpolating spline of order 2 or 3 (nnU-Net, SciPy).",
    )
    truncate_resampled: bool = Field(
        False,
        description="Whether resampled values lose their fraction, as in TotalSegmentator, which keeps them as "
        "integers. A scan that is not resampled keeps its values.",
    )
    intensity_before_resampling: bool = Field(
        False,
        description="Whether intensities are normalised before resampling (nnU-Net) or after it (most MONAI bundles).",
    )
    air_floor: bool = Field(
        True,
        description="Whether values of a CT below −1024, as outside the circle of reconstruction, are raised to "
        "−1024 where intensities depend on statistics of the scan. nnU-Net and MONAI count them as they are.",
    )
    separate_axis_above: PositiveFloat | None = Field(
        None,
        description="If the scan's largest spacing exceeds its smallest by more than this factor, the axis with the "
        "largest spacing is interpolated by nearest neighbour (nnU-Net: 3).",
    )
    crop: Annotated[Crop | tuple[Crop, Crop] | None, WrapValidator(_validate_crop)] = Field(
        None,
        description="Region of the scan that is segmented; the mask is 0 outside it. Resampling and intensity "
        "statistics use the cropped scan. Two crops: one of the scan, and within it one of the prepared scan.",
    )

    window: WindowSize = Field(
        description="Voxels of a window along each axis; null: the whole image. A network for planes has a window of "
        "one voxel along the axis that its input lacks."
    )
    multiple_of: PositiveInt = Field(
        1, description="Where the window is the whole image, it is padded to a multiple of this."
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="Share of a window that overlaps the next one.")
    placement: Literal["snap", "even"] = Field(
        "snap",
        description="Placement of the windows. snap: fixed step, and the last window is moved back into the volume "
        "(MONAI). even: equal steps (nnU-Net).",
    )
    blending: Blending = "gaussian"
    padding: Literal["constant", "edge", "reflect"] = Field(
        "constant", description="How a volume smaller than the window is padded."
    )
    padding_value: float = Field(0.0, description="Value of constant padding, in normalised intensities.")
    padding_sides: Literal["both", "end"] = Field(
        "both",
        description="Where such a volume is padded. both: by halves, the smaller one first (nnU-Net, MONAI). end: at "
        "the end of each axis (MONAI's DivisiblePad and SpatialPad with this method).",
    )
    mirror_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] = Field(
        (),
        description="Axes for test-time augmentation (nnU-Net's mirroring): each window runs once for every "
        "combination of these axes mirrored, and the logits are averaged. Three axes take eight times as long.",
    )

    networks: tuple[NetworkFile, ...] = Field(
        (), description="The networks that are averaged, such as nnU-Net's folds. None: model.onnx, by its sha256."
    )
    average: Literal["logits", "probabilities"] = Field(
        "logits", description="Values whose mean is taken over windows and networks."
    )
    first_stage: "Part | None" = Field(
        None,
        description="The part whose labels are further input channels of this one, each 0 or 1, in the order of their "
        "values (nnU-Net's cascade). Fields that it leaves out are those of this part.",
    )

    activation: Literal["softmax", "sigmoid"] = Field(
        description="How the output channels become a mask. softmax: the label of the highest channel. sigmoid: every "
        "channel above its threshold writes its label; later channels overwrite earlier ones."
    )
    outputs: tuple[OutputChannel, ...] = Field(
        (),
        description="The value of each output channel, in the order in which sigmoid channels write. Default: one for "
        "each label, in the order of the labels.",
    )
    logits_interpolation: Literal["nearest", "linear"] = Field(
        "linear",
        description="Interpolation to the scan's grid. linear: the label is decided there. nearest: the label of the "
        "nearest voxel of the network's grid.",
    )
    interpolate: Literal["logits", "probabilities"] = Field(
        "logits", description="Values that are interpolated to the scan's grid (nnU-Net: logits; MONAI: probabilities)."
    )

    @model_validator(mode="after")
    def _consistent_part(self) -> Self:
        check_orientation(self.orientation)
        if len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ValueError(f"mirror_axes must be unique, got {list(self.mirror_axes)}")
        channels = [output.channel for output in self.outputs]
        if sorted(channels) != list(range(len(channels))):
            raise ValueError(f"outputs must describe each output channel once, from 0 on, got {channels}")
        if self.activation == "sigmoid" and any(output.value == 0 for output in self.outputs):
            raise ValueError("a sigmoid model has no background channel: label value 0 is not allowed")
        if self.first_stage is not None and self.first_stage.first_stage is not None:
            raise ValueError("a first stage has no first stage of its own")
        if self.first_stage is not None and not self.first_stage.values:
            raise ValueError("a first stage needs an output with a value other than 0")
        if self.grid != "edges" and self.interpolation == "area":
            raise ValueError("interpolation area needs the grid edges, on which voxels cover each other")
        if self.truncate_resampled and self.intensity_before_resampling:
            raise ValueError("truncate_resampled needs intensities that are normalised after resampling")
        if self.size_voxels is not None and (any(self.spacing_mm) or self.grid != "edges"):
            raise ValueError("size_voxels takes the place of spacing_mm, on the grid edges")
        self._check_boxes()
        return self

    def _check_boxes(self) -> None:
        for each in (self.scan_crop, self.prepared_crop):
            if isinstance(each, ForegroundCrop) and each.channel is not None and each.channel >= len(self.channels):
                raise ValueError(f"crop.channel is {each.channel}, and the part has {len(self.channels)} channels")
        if isinstance(self.crop, tuple) and [is_prepared(crop) for crop in self.crop] != [False, True]:
            raise ValueError("of two crops, the first one is of the scan, and the second one of the prepared scan")
        crop = self.prepared_crop
        if isinstance(crop, NonzeroCrop) and (crop.margin_mm or self.intensity_before_resampling):
            raise ValueError("a crop of the resampled scan has no margin, and intensities that are normalised after it")
        prepared = crop is not None
        if prepared and self.box_voxels is not None:
            raise ValueError("a crop of the prepared scan and box_voxels exclude one another")
        values = {output.channel: output.value for output in self.outputs if output.value is not None}
        background_first = self.activation != "softmax" or not values or values[min(values)] == 0
        if (prepared or self.box_voxels is not None) and not background_first:
            raise ValueError("a crop of the prepared scan, or to box_voxels, needs the background as the first output")

    @property
    def preparation(self) -> tuple[object, ...]:
        """The fields that the prepared scan and the limits of its size depend on: parts with equal ones share it."""
        return (
            *(self.channels, self.orientation, self.spacing_mm, self.size_voxels, self.box_voxels, self.grid),
            *(self.interpolation, self.truncate_resampled, self.intensity_before_resampling, self.air_floor),
            *(self.separate_axis_above, self.crop, self.logits_interpolation),
            *(self.input_channels, self.window, self.multiple_of),
        )

    @property
    def scan_crop(self) -> Crop | None:
        """The crop of the scan as it is."""
        return next((crop for crop in self._crops if not is_prepared(crop)), None)

    @property
    def prepared_crop(self) -> Crop | None:
        """The crop of the scan on the network's grid."""
        return next((crop for crop in self._crops if is_prepared(crop)), None)

    @property
    def _crops(self) -> tuple[Crop, ...]:
        return self.crop if isinstance(self.crop, tuple) else () if self.crop is None else (self.crop,)

    @property
    def input_channels(self) -> int:
        """Channels of the network's input: those of the scan, and one for each label of the first stage."""
        return len(self.channels) + (0 if self.first_stage is None else len(self.first_stage.values))

    @property
    def axes_of_file(self) -> bool:
        """True if the orientation names axes of the file instead of directions in the patient."""
        return set(self.orientation) == _FILE_AXES

    @property
    def values(self) -> list[int]:
        """The values that the part writes, without 0, in ascending order."""
        return sorted({output.value for output in self.outputs if output.value})


def check_orientation(orientation: str) -> None:
    """Raises ValueError if a text is no orientation of a part."""
    if re.fullmatch("[ijk]{3}", orientation) and set(orientation) == _FILE_AXES:
        return
    if len(orientation) != len(_AXES) or any(len(set(orientation) & axis) != 1 for axis in _AXES):
        raise ValueError(
            f"orientation must contain one letter of each of L/R, P/A and I/S, or i, j and k, got {orientation!r}"
        )
