"""Maps MONAI's transforms of grids, crops and paddings to fields of a manifest."""

import ast
from dataclasses import dataclass
from typing import Literal

from inference_service.importers.monai.component import Component
from inference_service.importers.monai.values import Function, Symbol

_AXES = 3
Interpolation = Literal["nearest", "linear", "quadratic", "cubic"]
# By MONAI's name, or by the order of the spline.
_INTERPOLATIONS: dict[str, Interpolation] = {
    "bilinear": "linear",
    "trilinear": "linear",
    "linear": "linear",
    "nearest": "nearest",
    "0": "nearest",
    "1": "linear",
    "2": "quadratic",
    "3": "cubic",
}
# Of torch.nn.functional.interpolate.
_RESIZING: dict[str, Interpolation] = {
    **dict.fromkeys(("linear", "bilinear", "trilinear"), "linear"),
    "nearest-exact": "nearest",
}
_IGNORED = ("allow_missing_keys", "lazy")
PaddingMode = Literal["constant", "edge", "reflect"]
_PADDINGS: dict[str, PaddingMode] = {
    "constant": "constant",
    "edge": "edge",
    "replicate": "edge",
    "reflect": "reflect",
}


@dataclass(frozen=True)
class Grid:
    """The grid that Spacingd resamples to.

    Attributes:
        spacing_mm: Along each axis; None: that of the scan.
        interpolation: As in a manifest.
        size: Voxels along each axis, for Resized, which takes the place of a spacing; None: as the spacing gives.
    """

    spacing_mm: tuple[float | None, float | None, float | None]
    interpolation: Interpolation
    size: tuple[int, int, int] | None = None

    @property
    def resamples(self) -> bool:
        """True if scans are resampled."""
        return self.size is not None or any(self.spacing_mm)


@dataclass(frozen=True)
class ForegroundBox:
    """The crop of CropForegroundd.

    Attributes:
        source: Key of the image that is looked at.
        threshold: Values above it are foreground.
        margin: Voxels.
        divisor: The box's size is a multiple of it.
        channel: The only channel that is looked at; None: all.
        may_exceed: Whether the margin may lead out of the image; None: it is not stated.
    """

    source: str
    threshold: float
    margin: int
    divisor: int
    channel: int | None
    may_exceed: bool | None = None


@dataclass(frozen=True)
class Padding:
    """A padding of the image before its windows.

    Attributes:
        sizes: Least voxels along each axis; None for a padding to a multiple.
        multiple: The voxels become a multiple of it.
        mode: As in a manifest.
        value: Of constant padding.
        sides: As in a manifest.
    """

    sizes: tuple[int, ...] | None
    multiple: int
    mode: PaddingMode
    value: float
    sides: Literal["both", "end"]


def map_orientation(component: Component) -> str:
    """Maps Orientationd to three letters."""
    component.take("keys")
    canonical = component.flag("as_closest_canonical")
    codes = "RAS" if canonical else component.text("axcodes")
    labels = component.take("labels")
    if labels is not None and [tuple(pair) for pair in _pairs(labels)] != [("L", "R"), ("P", "A"), ("I", "S")]:
        component.refuse("other labels of the axes cannot be mapped to a manifest", "labels")
    component.finish(_IGNORED)
    return codes.upper()


def _pairs(labels: object) -> list[list[object]]:
    return [list(pair) if isinstance(pair, list | tuple | str) else [pair] for pair in _values(labels)]


def _values(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def map_spacing(component: Component) -> Grid:
    """Maps Spacingd to the grid that it resamples to."""
    component.take("keys")
    sizes: list[float | None] = []
    for value in _values(component.take("pixdim")):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            component.refuse(f"expected numbers, got {value!r}", "pixdim")
        sizes.append(float(value) if isinstance(value, int | float) and value > 0 else None)
    i, j, k = (sizes + sizes[-1:] * _AXES)[:_AXES]
    stated = component.single("mode", "bilinear")
    mode = str(stated.name if isinstance(stated, Symbol) else stated).rpartition(".")[2].lower()
    if mode not in _INTERPOLATIONS:
        component.refuse("this interpolation cannot be mapped to a manifest", "mode")
    _check_spacing(component)
    return Grid((i, j, k), _INTERPOLATIONS[mode])


def map_resize(component: Component) -> Grid:
    """Maps Resized to the size that it resamples to."""
    component.take("keys")
    if component.text("size_mode", "all") != "all":
        component.refuse("a size of the longest axis alone cannot be mapped to a manifest", "size_mode")
    i, j, k = _three_sizes(component)
    mode = component.text("mode", "area").lower()
    if mode not in _RESIZING:
        component.refuse(
            f"interpolation by {mode!r} cannot be mapped to a manifest, which has {', '.join(_RESIZING)}", "mode"
        )
    for argument in ("align_corners", "anti_aliasing"):
        if any(_values(component.take(argument, False))):
            component.refuse("this argument cannot be mapped to a manifest", argument)
    component.finish((*_IGNORED, "dtype"))
    return Grid((None, None, None), _RESIZING[mode], (i, j, k))


def map_box(component: Component) -> tuple[int, int, int]:
    """Maps ResizeWithPadOrCropd to the size of its box."""
    component.take("keys")
    if component.text("method", "symmetric") != "symmetric":
        component.refuse("only a box around the centre can be mapped to a manifest", "method")
    if padding_mode(component, "mode") != "constant" or component.number("value", 0.0) != 0:
        component.refuse("only padding with 0 can be mapped to a manifest", "mode")
    size = _three_sizes(component)
    component.finish(_IGNORED)
    return size


def _three_sizes(component: Component) -> tuple[int, int, int]:
    sizes = _values(component.take("spatial_size"))
    whole = [size for size in sizes if isinstance(size, int) and size > 0]
    if len(whole) != len(sizes) or len(whole) not in (1, _AXES):
        component.refuse(f"expected a size for each of three axes, got {sizes}", "spatial_size")
    i, j, k = (whole * _AXES)[:_AXES]
    return i, j, k


def _check_spacing(component: Component) -> None:
    """Refuses what changes the grid or the values at its edge."""
    for argument in ("diagonal", "scale_extent", "recompute_affine"):
        if any(_values(component.take(argument, False))):
            component.refuse("this argument cannot be mapped to a manifest", argument)
    if component.single("padding_mode", "border") not in ("border", "nearest"):
        component.refuse("only the border's values can be mapped to a manifest", "padding_mode")
    component.finish((*_IGNORED, "align_corners", "dtype", "ensure_same_shape"))


def map_crop(component: Component) -> ForegroundBox:
    """Maps CropForegroundd."""
    component.take("keys")
    channels = component.take("channel_indices")
    indices = _values(channels)
    if channels is not None and (len(indices) != 1 or not isinstance(indices[0], int)):
        component.refuse("only one channel or all of them can be mapped to a manifest", "channel_indices")
    smaller = component.take("allow_smaller")
    box = ForegroundBox(
        source=component.text("source_key"),
        threshold=selected_above(component),
        margin=_same_for_all_axes(component, "margin", 0),
        divisor=_same_for_all_axes(component, "k_divisible", 1),
        channel=indices[0] if isinstance(indices[0], int) else None,
        may_exceed=None if smaller is None else not smaller,
    )
    # The mode is that of voxels outside the image, which a box has only where a margin or a multiple leads there.
    component.finish((*_IGNORED, "mode", "start_coord_key", "end_coord_key", "constant_values"))
    return box


def _same_for_all_axes(component: Component, argument: str, default: int) -> int:
    values = set(_values(component.take(argument, default)))
    value = values.pop()
    if values or isinstance(value, bool) or not isinstance(value, int):
        component.refuse("only one whole number for all axes can be mapped to a manifest", argument)
    return value


def selected_above(component: Component) -> float:
    """Returns the threshold of select_fn, which must have the form `lambda x: x > number`."""
    select = component.take("select_fn")
    if select is None or (isinstance(select, Symbol) and select.name.endswith(".is_positive")):
        return 0.0
    if isinstance(select, Function):
        body, arguments = select.tree.body, select.tree.args.args
        if isinstance(body, ast.Compare) and len(arguments) == 1 and len(body.ops) == 1:
            left, (compare,), (right,) = body.left, body.ops, body.comparators
            of_image = isinstance(left, ast.Name) and left.id == arguments[0].arg
            threshold = _literal_number(right)
            if of_image and isinstance(compare, ast.Gt) and threshold is not None:
                return threshold
    component.refuse("only `lambda x: x > number` can be mapped to a manifest", "select_fn")


def _literal_number(node: ast.expr) -> float | None:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
    return float(value) if isinstance(value, int | float) else None


def map_padding(component: Component) -> Padding:
    """Maps SpatialPadd and DivisiblePadd."""
    component.take("keys")
    sides: Literal["both", "end"] = "both" if component.text("method", "symmetric") == "symmetric" else "end"
    mode = padding_mode(component, "mode")
    value = component.number("value", component.optional_number("constant_values", 0.0))
    if component.name == "DivisiblePadd":
        padding = Padding(None, _same_for_all_axes(component, "k", 1), mode, value, sides)
    else:
        sizes = _values(component.take("spatial_size"))
        whole = [size for size in sizes if isinstance(size, int)]
        if len(whole) != len(sizes) or len(whole) not in (1, _AXES):
            component.refuse("expected a whole number, or one for each axis", "spatial_size")
        padding = Padding(tuple(whole * _AXES)[:_AXES], 1, mode, value, sides)
    component.finish(_IGNORED)
    return padding


def padding_mode(component: Component, argument: str) -> PaddingMode:
    """Maps a mode of padding."""
    mode = component.text(argument, "constant").lower()
    if mode not in _PADDINGS:
        component.refuse(f"padding by {mode} cannot be mapped to a manifest", argument)
    return _PADDINGS[mode]
