"""Models on disk: `<models path>/<name>/<version>/{manifest.json,model.onnx}`, found, validated and read.

The manifest says all that inference needs to know; running the network is left to `inference` and `providers`.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from inference_service.errors import ModelInvalid, ModelNotFound
from inference_service.request import NAME_PATTERN, VERSION_PATTERN
from inference_service.volume import AXIS_CODES

MANIFEST_FILE = "manifest.json"
NETWORK_FILE = "model.onnx"


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


class Label(_Strict):
    """What one output channel of the network stands for."""

    name: str = Field(min_length=1, max_length=64)
    value: int = Field(ge=0, le=65535, description="The value in the mask.")


class LargestComponent(_Strict):
    """Keep each label's largest 26-connected component alone."""

    step: Literal["largest_component"]
    labels: tuple[int, ...] = Field(min_length=1)


class RemoveSmall(_Strict):
    """Drop the 26-connected components of each label that are smaller than `min_volume_ml`."""

    step: Literal["remove_small"]
    labels: tuple[int, ...] = Field(min_length=1)
    min_volume_ml: PositiveFloat


PostProcessing = Annotated[LargestComponent | RemoveSmall, Field(discriminator="step")]


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
    interpolation: Literal["linear", "cubic"] = Field("linear", description="How the scan is resampled to spacing_mm.")
    separate_axis_above: PositiveFloat | None = Field(
        None,
        description="Where the scan's largest spacing exceeds its smallest by more than this factor, nearest-neighbour "
        "interpolation along that axis (3 in nnU-Net).",
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

    activation: Literal["softmax", "sigmoid"] = Field(
        description="softmax: the label of the highest output channel; sigmoid: every channel above 0.5 writes its "
        "label, later channels over earlier ones."
    )
    labels: tuple[Label, ...] = Field(min_length=1, description="One for each output channel, in the network's order.")
    postprocessing: tuple[PostProcessing, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sorted(AXIS_CODES.get(code, -1) for code in self.orientation) != [0, 1, 2]:
            raise ValueError(f"orientation must name each of L/R, P/A and I/S once, got {self.orientation!r}")
        values = [label.value for label in self.labels]
        if len(set(values)) != len(values) or len({label.name for label in self.labels}) != len(values):
            raise ValueError("labels must differ in name and in value")
        if self.activation == "sigmoid" and 0 in values:
            raise ValueError("a sigmoid model has no background channel: label value 0 is what no channel claims")
        unknown = {value for step in self.postprocessing for value in step.labels} - set(values)
        if unknown:
            raise ValueError(f"postprocessing names label values that the model does not have: {sorted(unknown)}")
        return self


@dataclass(frozen=True)
class Model:
    """An installed model.

    Attributes:
        manifest: What it is and how it is fed.
        folder: Where its files lie.
    """

    manifest: Manifest
    folder: Path

    def read_network(self) -> bytes:
        """Reads the ONNX file whole, so that the very bytes that were verified are the ones that run.

        Raises:
            ModelInvalid: The file is missing, or its sha256 is not the manifest's.
        """
        try:
            network = (self.folder / NETWORK_FILE).read_bytes()
        except OSError as error:
            raise ModelInvalid(f"model {_title(self.manifest)} has no readable {NETWORK_FILE}") from error
        digest = hashlib.sha256(network).hexdigest()
        if digest != self.manifest.sha256:
            raise ModelInvalid(
                f"model {_title(self.manifest)}: expected sha256 {self.manifest.sha256} of {NETWORK_FILE}, got {digest}"
            )
        return network


def find_model(models_path: Path, name: str, version: str | None = None) -> Model:
    """Finds a model by name and version.

    Args:
        models_path: The folder of all models.
        name: The model's name.
        version: One of its versions; None takes the highest, compared number by number.

    Raises:
        ModelNotFound: There is none.
        ModelInvalid: Its manifest is wrong.
    """
    if not re.fullmatch(NAME_PATTERN, name) or (version is not None and not re.fullmatch(VERSION_PATTERN, version)):
        raise ModelNotFound(f"{name!r} {version or ''} is not the name and version of a model".replace("  ", " "))
    versions = _versions(models_path / name)
    if not versions:
        raise ModelNotFound(f"model {name!r} is not installed here")
    if version is None:
        version = versions[-1]
    elif version not in versions:
        raise ModelNotFound(f"model {name!r} has no version {version}; installed: {', '.join(versions)}")
    return read_model(models_path / name / version)


def list_models(models_path: Path) -> list[Path]:
    """Lists the folders of all installed models, each version on its own, ordered by name and version."""
    if not models_path.is_dir():
        return []
    names = sorted(folder for folder in models_path.iterdir() if re.fullmatch(NAME_PATTERN, folder.name))
    return [name / version for name in names for version in _versions(name)]


def read_model(folder: Path) -> Model:
    """Reads the manifest in a model's folder.

    Raises:
        ModelInvalid: The manifest is unreadable, breaks the schema, or contradicts the folder's name.
    """
    title = f"{folder.parent.name} {folder.name}"
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except OSError as error:
        raise ModelInvalid(f"model {title} has no readable {MANIFEST_FILE}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ModelInvalid(f"model {title}: {MANIFEST_FILE} is invalid at {place}: {first['msg']}") from error
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise ModelInvalid(f"model {title}: {MANIFEST_FILE} says {_title(manifest)}")
    return Model(manifest, folder)


def check_signature(manifest: Manifest, inputs: list[list[int | None]], outputs: list[list[int | None]]) -> None:
    """Checks that a network takes and gives what the manifest says.

    Args:
        manifest: The model's manifest.
        inputs: Shape of each input, None where a dimension is free: expected one of (batch, channels, *window).
        outputs: Shape of each output: expected one of (batch, labels, *window).

    Raises:
        ModelInvalid: It does not.
    """
    for role, shapes, channels in (
        ("input", inputs, len(manifest.channels)),
        ("output", outputs, len(manifest.labels)),
    ):
        expected = [1, channels, *manifest.window]
        fits = len(shapes) == 1 and len(shapes[0]) == len(expected)
        if not fits or any(got not in (None, want) for got, want in zip(shapes[0], expected, strict=True)):
            raise ModelInvalid(f"model {_title(manifest)}: expected one {role} of shape {expected}, got {shapes}")
    if len(manifest.channels) != 1:
        raise ModelInvalid(f"model {_title(manifest)} wants {len(manifest.channels)} channels; a job brings one volume")


def _versions(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    versions = [
        child.name for child in folder.iterdir() if child.is_dir() and re.fullmatch(VERSION_PATTERN, child.name)
    ]
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])


def _title(manifest: Manifest) -> str:
    return f"{manifest.name} {manifest.version}"
