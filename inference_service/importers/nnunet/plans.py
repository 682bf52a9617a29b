"""The plans of nnU-Net: how a configuration prepares its input, and on which windows it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

from inference_service.importers.nnunet.fields import Fields, Json, one_line, read_json, shown
from inference_service.importers.nnunet.network import Architecture, read_architecture
from inference_service.importers.nnunet.results_folder import PLANS_FILE

# The axes of the arrays that a reader gives: those of the file, slowest first, or directions in the patient.
_READERS = {
    "SimpleITKIO": "kji",
    "NibabelIO": "kji",
    "SimpleITKIOWithReorient": "SAR",
    "NibabelIOWithReorient": "SAR",
}
_PREPROCESSOR = "DefaultPreprocessor"
_LABEL_MANAGER = "LabelManager"
# nnU-Net's ANISO_THRESHOLD.
_ANISOTROPY = 3.0
# Any ratio of the largest spacing to the smallest one is above it.
_ALWAYS = 0.5
_ORDERS = {0: "nearest", 1: "linear", 2: "quadratic", 3: "cubic"}
_SPLINES = "resample_data_or_seg_to_shape"
_TORCH = "resample_torch_fornnunet"
_UNCHANGED = "no_resampling_hack"
_MAX_WINDOW = 4096
_MAX_WINDOW_VOXELS = 2**27
_MAX_INHERITED = 8
_AXES = 3
# The options of nnU-Net's functions, with their defaults.
_RESAMPLING: Mapping[str, Mapping[str, Json]] = {
    _SPLINES: {
        "is_seg": False,
        "order": 3,
        "order_z": 0,
        "force_separate_z": False,
        "separate_z_anisotropy_threshold": _ANISOTROPY,
    },
    _TORCH: {
        "is_seg": False,
        "memefficient_seg_resampling": False,
        "mode": "linear",
        "aniso_axis_mode": "nearest-exact",
        "force_separate_z": None,
        "separate_z_anisotropy_threshold": _ANISOTROPY,
    },
}
_WITHOUT_EFFECT = {"num_threads", "device"}


@dataclass(frozen=True)
class Resampling:
    """How values are brought to another grid.

    Attributes:
        interpolation: As a manifest calls it.
        separate_axis_above: As in a manifest.
    """

    interpolation: str
    separate_axis_above: float | None


@dataclass(frozen=True)
class Configuration:
    """A configuration of plans. Axes are those of the network, after nnU-Net's transposition.

    Attributes:
        name: nnU-Net's name, such as 3d_fullres.
        orientation: As in a manifest.
        spacing_mm: None along an axis that is not resampled.
        window: Voxels; 1 along the axis that a network for planes lacks.
        dimensions: Axes of the network, 2 or 3.
        image: How the scan is resampled.
        logits: How logits are.
        labels: How the labels of the stage before are; without one, as the scan.
        intensities: Mappings of each channel, as in a manifest.
        architecture: The network.
        previous_stage: The configuration whose labels are further channels; None: there is none.
    """

    name: str
    orientation: str
    spacing_mm: tuple[float | None, ...]
    window: tuple[int, ...]
    dimensions: int
    image: Resampling
    logits: Resampling
    labels: Resampling
    intensities: tuple[Mapping[str, Json], ...]
    architecture: Architecture
    previous_stage: str | None

    def part_fields(self) -> dict[str, object]:
        """Returns the fields of a manifest's part that follow from the plans, but for channels and outputs."""
        return {
            "orientation": self.orientation,
            "spacing_mm": list(self.spacing_mm),
            "grid": "edges",
            "interpolation": self.image.interpolation,
            "intensity_before_resampling": True,
            "separate_axis_above": self.image.separate_axis_above,
            "crop": {"kind": "nonzero"},
            "window": list(self.window),
            "overlap": 0.5,
            "placement": "even",
            "blending": {"kind": "gaussian", "sigma": 0.125, "centre": "voxel"},
            "logits_interpolation": self.logits.interpolation,
        }


class Plans:
    """The plans of a results folder.

    Args:
        fields: The content of plans.json.

    Raises:
        ModelInvalid: It has what a manifest cannot say.
    """

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.name = self.fields.text("plans_name", "plans")
        self.dataset = self.fields.text("dataset_name", "a data set without a name")
        self.reader = self.fields.text("image_reader_writer")
        if self.reader not in _READERS:
            self.fields.refuse("image_reader_writer", f"{self.reader[:200]} is not supported: {one_line([*_READERS])}")
        manager = self.fields.text("label_manager", _LABEL_MANAGER)
        if manager != _LABEL_MANAGER:
            self.fields.refuse("label_manager", f"{manager[:200]} is not supported")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the plans in a results folder.

        Raises:
            InputNotFound: It has no plans.json.
            ModelInvalid: That is damaged, or has what a manifest cannot say.
        """
        return cls(read_json(folder / PLANS_FILE))

    @property
    def names(self) -> list[str]:
        """The names of the configurations."""
        return list(self.fields.child("configurations").values)

    def configuration(self, name: str) -> Configuration:
        """Reads a configuration.

        Raises:
            ModelInvalid: There is none of this name, or it has what a manifest cannot say.
        """
        fields = self.configuration_fields(name)
        preprocessor = fields.text("preprocessor_name", _PREPROCESSOR)
        if preprocessor != _PREPROCESSOR:
            fields.refuse("preprocessor_name", f"{preprocessor[:200]} is not supported")
        window = fields.wholes("patch_size", 1, _MAX_WINDOW)
        if len(window) not in (2, 3) or prod(window) > _MAX_WINDOW_VOXELS:
            fields.refuse("patch_size", f"expected 2 or 3 sizes and at most {_MAX_WINDOW_VOXELS} voxels")
        previous_stage = fields.text("previous_stage") if "previous_stage" in fields else None
        image, logits = (_resampling(fields, what) for what in ("data", "probabilities"))
        # Only a cascade resamples labels.
        labels = image if previous_stage is None else _resampling(fields, "seg")
        spacing = self._spacing(fields, len(window))
        if image is None or logits is None or labels is None:
            if (image, logits, labels) != (None, None, None):
                fields.refuse("resampling_fn_data", f"{_UNCHANGED} is supported for all values together")
            spacing = (None,) * _AXES
            image = logits = labels = Resampling("linear", None)
        if len({image.separate_axis_above, logits.separate_axis_above, labels.separate_axis_above}) > 1:
            fields.refuse("resampling_fn_data_kwargs", "scan and logits must separate the axis of thick slices alike")
        if logits.interpolation not in ("nearest", "linear"):
            fields.refuse("resampling_fn_probabilities_kwargs", "logits are interpolated with order 0 or 1 alone")
        return Configuration(
            name=name,
            orientation=self._orientation(),
            spacing_mm=spacing,
            window=(*(1,) * (_AXES - len(window)), *window),
            dimensions=len(window),
            image=image,
            logits=logits,
            labels=labels,
            intensities=self._intensities(fields),
            architecture=read_architecture(fields, len(window)),
            previous_stage=previous_stage,
        )

    def configuration_fields(self, name: str) -> Fields:
        """Returns a configuration with the fields of those that it inherits from."""
        configurations = self.fields.child("configurations")
        if name not in configurations:
            configurations.refuse(name, f"there is no such configuration; there are: {one_line(self.names)}")
        values: dict[str, Json] = {}
        current: str | None = name
        for _ in range(_MAX_INHERITED):
            if current is None:
                break
            fields = configurations.child(current)
            values = {**fields.values, **values}
            current = fields.text("inherits_from") if "inherits_from" in fields else None
        if current is not None:
            configurations.refuse(name, f"it inherits from more than {_MAX_INHERITED} others")
        return Fields(values, self.fields.file, f"configurations.{name}.")

    def _transposition(self) -> list[int]:
        axes = self.fields.wholes("transpose_forward", 0, _AXES - 1)
        if sorted(axes) != list(range(_AXES)):
            self.fields.refuse("transpose_forward", "expected the axes 0, 1 and 2 in any order")
        return axes

    def _orientation(self) -> str:
        return "".join(_READERS[self.reader][axis] for axis in self._transposition())

    def _spacing(self, fields: Fields, dimensions: int) -> tuple[float | None, ...]:
        spacing = fields.numbers("spacing")
        if len(spacing) != dimensions or min(spacing) <= 0:
            fields.refuse("spacing", f"expected {dimensions} positive numbers, as patch_size has {dimensions}")
        return (*(None,) * (_AXES - dimensions), *spacing)

    def _intensities(self, fields: Fields) -> tuple[Mapping[str, Json], ...]:
        schemes = fields.items("normalization_schemes")
        masked = fields.items("use_mask_for_norm")
        if len(masked) != len(schemes):
            fields.refuse("use_mask_for_norm", f"expected {len(schemes)} values, one for each normalization scheme")
        return tuple(
            self._intensity(fields, str(scheme), str(channel), mask is True)
            for channel, (scheme, mask) in enumerate(zip(schemes, masked, strict=True))
        )

    def _intensity(self, fields: Fields, scheme: str, channel: str, masked: bool) -> dict[str, Json]:
        match scheme:
            case "CTNormalization":
                return self._ct(channel)
            case "ZScoreNormalization":
                return {"kind": "z_score", **({"nonzero_only": True, "fill_holes": True} if masked else {})}
            case "RescaleTo01Normalization":
                return {"kind": "min_max"}
            case "RGBTo01Normalization":
                return {"kind": "fixed_range", "input": [0, 255], "clip": False}
            case "NoNormalization":
                return {"kind": "none"}
        fields.refuse("normalization_schemes", f"{scheme[:200]} is not supported")

    def _ct(self, channel: str) -> dict[str, Json]:
        # The older name of the key is that of nnU-Net 2.0.
        names = ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality")
        name = next((each for each in names if each in self.fields), names[0])
        found = self.fields.child(name).child(channel)
        clip: list[Json] = [found.number("percentile_00_5"), found.number("percentile_99_5")]
        return {"kind": "ct", "clip": clip, "mean": found.number("mean"), "std": max(found.number("std"), 1e-8)}


def _resampling(fields: Fields, what: str) -> Resampling | None:
    """How the scan (`data`), logits (`probabilities`) or labels (`seg`) are resampled; None: they are not."""
    key = f"resampling_fn_{what}"
    function = fields.text(key)
    if function == _UNCHANGED:
        return None
    if function not in _RESAMPLING:
        fields.refuse(key, f"{function[:200]} is not supported")
    # Options that the plans leave out have the values of nnU-Net's function.
    given = fields.child(f"{key}_kwargs")
    options = Fields({**_RESAMPLING[function], **given.values}, given.file, given.place)
    if unknown := sorted(options.values.keys() - _RESAMPLING[function].keys() - _WITHOUT_EFFECT):
        options.refuse(unknown[0], "an option of this name is not known")
    if options.flag("is_seg", False) != (what == "seg"):
        options.refuse("is_seg", f"expected {shown(what == 'seg')}")
    separate = _separate(options)
    return _torch_resampling(options, separate) if function == _TORCH else _splines(options, separate)


def _separate(options: Fields) -> float | None:
    """The ratio of spacings above which nnU-Net resamples the axis of thick slices by itself."""
    forced = options.values["force_separate_z"]
    if forced is None:
        return max(options.number("separate_z_anisotropy_threshold"), _ALWAYS)
    return _ALWAYS if options.flag("force_separate_z", False) else None


def _splines(options: Fields, separate: float | None) -> Resampling:
    order = options.whole("order", 0, 5)
    if order not in _ORDERS:
        options.refuse("order", f"a spline of order {order} is not supported; 0 to {max(_ORDERS)} are")
    order_z = options.whole("order_z", 0, 5)
    if separate is None or order_z == 0:
        return Resampling(_ORDERS[order], separate)
    if (order, order_z) == (1, 1) and not options.flag("is_seg", False):
        # Linear in the slices and then across them is linear along all axes.
        return Resampling("linear", None)
    options.refuse("order_z", f"{order_z} is not supported beside an order of {order}; 0 is, and 1 beside 1")


def _torch_resampling(options: Fields, separate: float | None) -> Resampling:
    if options.values["mode"] != "linear":
        options.refuse("mode", "only linear is supported")
    if options.flag("is_seg", False) and options.flag("memefficient_seg_resampling", False):
        options.refuse("memefficient_seg_resampling", "only false is supported")
    across = options.text("aniso_axis_mode")
    if separate is None or across == "nearest-exact":
        return Resampling("linear", separate)
    if across == "linear":
        return Resampling("linear", None)
    options.refuse("aniso_axis_mode", f"{across[:200]} is not supported; nearest-exact and linear are")
