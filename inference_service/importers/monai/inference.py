"""Maps the inferer of a bundle to the windows of a manifest."""

from collections.abc import Sequence
from math import isclose

from inference_service.importers.monai.component import Component
from inference_service.importers.monai.spatial import Padding, padding_mode

_SLIDING = {"SlidingWindowInferer", "SlidingWindowInfererAdapt"}
_PLANES = 2
_VOLUMES = 3
# They change where and in what order it is computed, and no value.
_IGNORED = (
    *("sw_batch_size", "sw_device", "device", "progress", "cache_roi_weight_map", "cpu_thresh"),
    *("buffer_steps", "buffer_dim"),
)
# The standard deviation that `gaussian` stands for in a manifest.
_USUAL_SIGMA = 0.125


def check_dimensions(inferer: Component, dimensions: int) -> None:
    """Refuses an inferer that gives the network no volumes, or planes of them.

    Args:
        inferer: The inferer.
        dimensions: Spatial dimensions of the network.
    """
    if inferer.name == "SliceInferer" and dimensions != _PLANES:
        inferer.refuse(f"expected a network for planes, got one with {dimensions} spatial dimensions")
    if inferer.name != "SliceInferer" and dimensions != _VOLUMES:
        inferer.refuse(
            f"the network takes images of {dimensions} dimensions, and this service segments volumes. For a volume's "
            "planes, name a copy of the config with a SliceInferer by --config"
        )


def map_inferer(inferer: Component, padding: Padding | None) -> dict[str, object]:
    """Maps an inferer, and a padding before it, to the fields of a manifest.

    Args:
        inferer: The inferer; see `check_dimensions`.
        padding: The padding of the preprocessing; None: none.

    Raises:
        ModelInvalid: The inferer has no counterpart in a manifest.
    """
    if not inferer.is_monai:
        inferer.refuse(f"{inferer.target} is Python of the bundle's own, which is not run")
    if inferer.name == "SimpleInferer":
        return _whole_image(inferer, padding)
    if inferer.name == "SliceInferer":
        window = _planes(inferer)
    elif inferer.name in _SLIDING:
        window = _sizes(inferer, _VOLUMES)
    else:
        inferer.refuse("this inferer cannot be mapped to a manifest")
    fields: dict[str, object] = {
        "window": window,
        "overlap": _one_value(inferer, "overlap", 0.25),
        "placement": "snap",
        "blending": _blending(inferer),
        "padding": padding_mode(inferer, "padding_mode"),
        "padding_value": inferer.number("cval", 0.0),
    }
    if inferer.flag("with_coord"):
        inferer.refuse("the network takes the place of the window too", "with_coord")
    inferer.finish(_IGNORED)
    if padding is not None:
        fields |= _earlier_padding(inferer, padding, window)
    return fields


def _whole_image(inferer: Component, padding: Padding | None) -> dict[str, object]:
    fields: dict[str, object] = {"window": (None, None, None), "overlap": 0.0, "blending": "constant"}
    if padding is None:
        return fields
    if padding.sizes is not None:
        inferer.refuse("SpatialPadd pads the whole image to a size, which cannot be mapped to a manifest")
    return fields | {
        "multiple_of": padding.multiple,
        "padding": padding.mode,
        "padding_value": padding.value,
        "padding_sides": padding.sides,
    }


def _earlier_padding(inferer: Component, padding: Padding, window: Sequence[int | None]) -> dict[str, object]:
    """The padding of the preprocessing, if it is that of the first window."""
    if padding.sizes is None or any(
        size > 0 and size != extent for size, extent in zip(padding.sizes, window, strict=True)
    ):
        inferer.refuse("the preprocessing pads to another size than a window's, which cannot be mapped to a manifest")
    return {"padding": padding.mode, "padding_value": padding.value, "padding_sides": padding.sides}


def _sizes(inferer: Component, dimensions: int) -> tuple[int | None, ...]:
    value = inferer.take("roi_size")
    values = list(value) if isinstance(value, list | tuple) else [value] * dimensions
    sizes: list[int | None] = []
    for each in values:
        if each is not None and (isinstance(each, bool) or not isinstance(each, int)):
            inferer.refuse(f"expected whole numbers, got {value!r}", "roi_size")
        sizes.append(each if isinstance(each, int) and each > 0 else None)
    if len(sizes) != dimensions:
        inferer.refuse(f"expected {dimensions} sizes, got {len(sizes)}", "roi_size")
    return tuple(sizes)


def _planes(inferer: Component) -> tuple[int | None, ...]:
    axis = inferer.whole("spatial_dim", 0)
    if not 0 <= axis < _VOLUMES:
        inferer.refuse(f"expected 0, 1 or 2, got {axis}", "spatial_dim")
    sizes = list(_sizes(inferer, _PLANES))
    sizes.insert(axis, 1)
    return tuple(sizes)


def _one_value(inferer: Component, argument: str, default: float) -> float:
    value = inferer.take(argument, default)
    values = set(value) if isinstance(value, list | tuple) else {value}
    if len(values) != 1:
        inferer.refuse("different values for the axes cannot be mapped to a manifest", argument)
    (only,) = values
    if isinstance(only, bool) or not isinstance(only, int | float):
        inferer.refuse(f"expected a number, got {only!r}", argument)
    return float(only)


def _blending(inferer: Component) -> object:
    mode = inferer.text("mode", "constant").lower()
    sigma = _one_value(inferer, "sigma_scale", _USUAL_SIGMA)
    if mode == "constant":
        return mode
    if mode != "gaussian":
        inferer.refuse(f"importance {mode!r} cannot be mapped to a manifest", "mode")
    return mode if isclose(sigma, _USUAL_SIGMA) else {"kind": "gaussian", "sigma": sigma, "centre": "middle"}
