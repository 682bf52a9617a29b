"""Maps the preprocessing of a bundle, transform by transform, to the fields of a manifest that prepare a scan."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from inference_service.contract.intensity import Intensity, NoIntensity
from inference_service.importers.monai.component import COPY, Component
from inference_service.importers.monai.intensities import (
    ChannelSteps,
    is_affine,
    map_intensity,
    map_threshold,
    of_one_channel,
    uses_statistics,
)
from inference_service.importers.monai.spatial import (
    ForegroundBox,
    Grid,
    Padding,
    map_box,
    map_crop,
    map_orientation,
    map_padding,
    map_resize,
    map_spacing,
)
from inference_service.importers.monai.values import Symbol

IMAGE_KEY = "image"
# They change neither values nor grid, as far as a scan that this service reads is concerned.
_WITHOUT_EFFECT = {
    "DataStatsd",
    "DeleteItemsd",
    "FromMetaTensord",
    "Identityd",
    "SelectItemsd",
    "ToDeviced",
    "ToMetaTensord",
    "ToNumpyd",
}
_CODE = {"Lambdad", "Lambda"}
_WHOLE_NUMBERS = ("int", "long", "bool")


@dataclass
class Preparation:
    """The preparation of a network's input, as far as it has been mapped.

    Attributes:
        images: Keys of the images that become the network's input: one, or one for each of its channels.
        joined: The key under which they are joined; None for one image.
        orientation: As in a manifest; None: the axes of the file.
        grid: The resampling; None: none.
        before: Steps of intensities before the resampling, by image.
        after: Those after it.
        crop: The crop.
        crop_after_grid: Whether the crop lies after the resampling.
        crop_threshold: The crop's threshold, on the scan's own values unless it lies after the resampling.
        crop_position: Number of transforms of intensities between the resampling and the crop.
        padding: The padding.
        box: The box around the centre to which the image is brought.
        box_positions: For each image, the number of transforms of intensities before the resampling and between it and
            the box.
        notes: What is assumed.
        used: The transforms that the network's input goes through.
    """

    images: list[str]
    joined: str | None = None
    orientation: str | None = None
    grid: Grid | None = None
    before: dict[str, list[ChannelSteps]] = field(default_factory=dict)
    after: dict[str, list[ChannelSteps]] = field(default_factory=dict)
    crop: ForegroundBox | None = None
    crop_after_grid: bool = False
    crop_threshold: float = 0.0
    crop_position: int = 0
    padding: Padding | None = None
    box: tuple[int, int, int] | None = None
    box_positions: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    used: list[Component] = field(default_factory=list)

    def touched(self, component: Component) -> list[str]:
        """The images among the keys of a transform."""
        keys = component.texts("keys")
        return [image for image in self.images if image in keys or self.joined in keys]

    def fields(self, channel_names: Sequence[str], first: Component) -> dict[str, object]:
        """Returns the fields of the manifest.

        Args:
            channel_names: Names of the network's input channels.
            first: The first transform, for errors about the whole.
        """
        before, after = (
            self._channels(self.before, channel_names, first),
            self._channels(self.after, channel_names, first),
        )
        resampled = self.grid is not None and self.grid.resamples
        steps, early = self._boxed(before, after, first) if self.box else _one_side(before, after, resampled, first)
        spacing: tuple[float | None, ...] = (None, None, None) if self.grid is None else self.grid.spacing_mm
        size = None if self.grid is None else self.grid.size
        return {
            "channels": [
                {"name": name, "intensity": [step.model_dump() for step in each or (NoIntensity(kind="none"),)]}
                for name, each in zip(channel_names, steps, strict=True)
            ],
            "orientation": self.orientation or "ijk",
            "spacing_mm": spacing,
            "grid": "first_centre" if size is None else "edges",
            **({} if size is None else {"size_voxels": size}),
            **({} if self.box is None else {"box_voxels": self.box}),
            "interpolation": "linear" if self.grid is None else self.grid.interpolation,
            "intensity_before_resampling": early,
            **({} if self.crop is None else {"crop": self._crop_fields(self.crop, first)}),
        }

    def _boxed(
        self, before: list[tuple[Intensity, ...]], after: list[tuple[Intensity, ...]], first: Component
    ) -> tuple[list[tuple[Intensity, ...]], bool]:
        """The steps of each channel where the image is brought to a box, which precedes or follows all of them.

        Returns:
            The steps, and whether they precede the resampling and the box.
        """
        counts = [(len(self.before.get(image, ())), len(self.after.get(image, ()))) for image in self.images]
        positions = [self.box_positions.get(image, (0, 0)) for image in self.images]
        if all(position == (0, 0) and not early for position, (early, _) in zip(positions, counts, strict=True)):
            return after, False
        resampled = self.grid is not None and self.grid.resamples
        if positions == counts and (not resampled or not any(late for _, late in counts)):
            return [early + late for early, late in zip(before, after, strict=True)], True
        first.refuse("ResizeWithPadOrCropd lies between intensities, which cannot be mapped to a manifest")

    def _channels(
        self, steps: dict[str, list[ChannelSteps]], names: Sequence[str], first: Component
    ) -> list[tuple[Intensity, ...]]:
        """The steps of each channel, in order."""
        keys = self.images
        if len(keys) not in (1, len(names)):
            first.refuse(f"{len(keys)} images are joined for a network with {len(names)} input channels")
        found = []
        for number in range(len(names)):
            key = keys[number] if len(keys) > 1 else keys[0]
            chosen: list[Intensity] = []
            for each in steps.get(key, ()):
                if len(each) not in (1, len(names)):
                    first.refuse(f"intensities of {len(each)} channels for a network with {len(names)}")
                chosen.extend(each[number if len(each) > 1 else 0])
            found.append(tuple(chosen if len(names) > 1 else map(of_one_channel, chosen)))
        return found

    def _crop_fields(self, crop: ForegroundBox, first: Component) -> dict[str, object]:
        key = self.images[0]
        later = [step for each in self.after.get(key, [])[self.crop_position :] for step in each[0]]
        threshold: float | None = self.crop_threshold
        if self.crop_after_grid:
            threshold = map_threshold(self.crop_threshold, later)
            if threshold is None:
                first.refuse(
                    "CropForegroundd lies before intensities that depend on what it crops, or hide its threshold"
                )
        return {
            "kind": "foreground",
            "threshold": threshold,
            "margin_voxels": crop.margin,
            "divisor": crop.divisor,
            "channel": crop.channel,
            "prepared": self.crop_after_grid,
        }


def map_preprocessing(transforms: Sequence[Component]) -> Preparation:
    """Maps the transforms of a bundle's preprocessing.

    Args:
        transforms: At least one, in order.

    Raises:
        ModelInvalid: A transform or its place has no counterpart in a manifest; the message names it.
    """
    preparation = _inputs(transforms)
    for component in transforms:
        touched = preparation.touched(component)
        if not touched or component.name in _WITHOUT_EFFECT:
            continue
        component.choose(touched[0])
        preparation.used.append(component)
        if component.name == "ConcatItemsd":
            continue
        handler = _HANDLERS.get(component.name)
        if handler is None:
            if not _add_intensity(preparation, component, touched):
                component.refuse(f"this transform cannot be mapped to a manifest. {COPY}")
        else:
            if component.name in _SPATIAL and len(touched) < len(preparation.images):
                component.refuse(f"it applies to {touched} alone, not to all channels of the network's input", "keys")
            handler(preparation, component)
    return preparation


def _inputs(transforms: Sequence[Component]) -> Preparation:
    """Finds the images that become the network's input."""
    for each in transforms:
        if not each.is_monai or each.name in _CODE:
            each.refuse(f"{each.target} is Python of the bundle's own, which is not run. {COPY}")
        if "keys" not in each.arguments and each.is_monai and not each.name.endswith("d"):
            each.refuse("only transforms of dictionaries, such as LoadImaged, are mapped")
    loaded = [key for each in transforms if each.name == "LoadImaged" for key in each.texts("keys")]
    for component in transforms:
        if component.name == "ConcatItemsd":
            keys, name = component.texts("keys"), component.text("name")
            if component.take("dim", 0) != 0:
                component.refuse("only channels can be joined", "dim")
            if name == IMAGE_KEY or IMAGE_KEY not in loaded:
                return Preparation(keys, joined=name)
    if IMAGE_KEY not in loaded and len(set(loaded)) != 1:
        transforms[0].refuse(f"none of the images {loaded} is the network's input, {IMAGE_KEY!r}")
    return Preparation([IMAGE_KEY] if IMAGE_KEY in loaded else loaded[:1])


def _load(preparation: Preparation, component: Component) -> None:
    _check_dtype(component)
    reader = component.take("reader")
    if reader is not None:
        name = getattr(reader, "name", reader)
        preparation.notes.append(f"The scan is read by this service, not by {str(name).rpartition('.')[2]}.")


def _check_dtype(component: Component) -> None:
    """Refuses a conversion to whole numbers, which would round the values."""
    dtype = component.take("dtype")
    for each in dtype if isinstance(dtype, list | tuple) else [dtype]:
        name = str(each.name if isinstance(each, Symbol) else each).rpartition(".")[2]
        if name.lstrip("u").startswith(_WHOLE_NUMBERS):
            component.refuse(f"values become whole numbers ({name}), which cannot be mapped to a manifest", "dtype")


def _channel_first(_preparation: Preparation, component: Component) -> None:
    dimension = component.take("channel_dim")
    if dimension not in (None, "no_channel", 0, -1):
        component.refuse(f"a channel along axis {dimension} cannot be mapped to a manifest", "channel_dim")


def _add_channel(_preparation: Preparation, component: Component) -> None:
    component.finish(("keys", "allow_missing_keys"))


def _orient(preparation: Preparation, component: Component) -> None:
    if preparation.box is not None or preparation.padding is not None:
        component.refuse("it lies after a padding or a box, whose halves would be exchanged")
    if preparation.crop is not None and preparation.crop.divisor > 1:
        component.refuse("it lies after a CropForegroundd with k_divisible, whose halves would be exchanged")
    if preparation.grid is not None and preparation.grid.size is not None:
        component.refuse("it lies after Resized, whose size is along the axes of the file")
    if preparation.grid is not None and len(set(preparation.grid.spacing_mm)) > 1:
        component.refuse("it lies after Spacingd, whose spacing would be along the axes of the file")
    if preparation.grid is not None:
        component.refuse("it lies after Spacingd: the grid would begin at another corner of each scan")
    preparation.orientation = map_orientation(component)


def _space(preparation: Preparation, component: Component) -> None:
    if preparation.grid is not None:
        component.refuse("the scan is resampled twice, which cannot be mapped to a manifest")
    if preparation.padding is not None or preparation.box is not None:
        component.refuse("the scan is padded before it is resampled, which cannot be mapped to a manifest")
    grid = map_resize(component) if component.name == "Resized" else map_spacing(component)
    if preparation.orientation is None and len(set(grid.spacing_mm)) > 1:
        preparation.notes.append("Spacings are along the axes of the file: there is no Orientationd.")
    preparation.grid = grid


def _crop(preparation: Preparation, component: Component) -> None:
    if preparation.crop is not None or preparation.box is not None:
        component.refuse("the scan is cropped twice, which cannot be mapped to a manifest")
    crop = map_crop(component)
    if crop.source not in (*preparation.images, preparation.joined):
        component.refuse(f"it looks at {crop.source!r}, which is not the network's input", "source_key")
    if len(preparation.images) > 1 and crop.source in preparation.images:
        crop = replace(crop, channel=preparation.images.index(crop.source))
    preparation.crop_after_grid = preparation.grid is not None
    steps = preparation.after if preparation.crop_after_grid else preparation.before
    earlier = [step for each in steps.get(preparation.images[0], ()) for step in each[0]]
    preparation.crop_position = len(preparation.after.get(preparation.images[0], ()))
    preparation.crop_threshold = crop.threshold
    if not preparation.crop_after_grid and earlier:
        threshold = _threshold_before(crop.threshold, earlier)
        if threshold is None:
            component.refuse("it lies after intensities that depend on the whole scan, or hide its threshold")
        preparation.crop_threshold = threshold
    if crop.margin and crop.may_exceed is not preparation.crop_after_grid:
        ends = (
            "leads beyond the edge of the image, padded with 0" if preparation.crop_after_grid else "ends at its edge"
        )
        preparation.notes.append(f"Where the foreground reaches the edge of the image, the crop's margin {ends}.")
    preparation.crop = crop


def _threshold_before(threshold: float, steps: Sequence[Intensity]) -> float | None:
    """The threshold on the scan's own values, from one on values after steps that keep their order."""
    low, high = map_threshold(0.0, steps), map_threshold(1.0, steps)
    if any(not is_affine(step) for step in steps) or low is None or high is None or high <= low:
        return None
    return (threshold - low) / (high - low)


def _box(preparation: Preparation, component: Component) -> None:
    if preparation.box is not None or preparation.padding is not None or preparation.crop_after_grid:
        component.refuse("the image is cropped or padded twice, which cannot be mapped to a manifest")
    preparation.box = map_box(component)
    preparation.box_positions = {
        image: (len(preparation.before.get(image, ())), len(preparation.after.get(image, ())))
        for image in preparation.images
    }


def _pad(preparation: Preparation, component: Component) -> None:
    if preparation.padding is not None:
        component.refuse("the scan is padded twice, which cannot be mapped to a manifest")
    preparation.padding = map_padding(component)


def _convert(_preparation: Preparation, component: Component) -> None:
    _check_dtype(component)


_SPATIAL = {
    *("CropForegroundd", "DivisiblePadd", "Orientationd", "Resized", "ResizeWithPadOrCropd", "SpatialPadd", "Spacingd"),
}
_HANDLERS = {
    "AddChanneld": _add_channel,
    "CastToTyped": _convert,
    "CropForegroundd": _crop,
    "DivisiblePadd": _pad,
    "EnsureChannelFirstd": _channel_first,
    "EnsureTyped": _convert,
    "LoadImaged": _load,
    "Orientationd": _orient,
    "Resized": _space,
    "ResizeWithPadOrCropd": _box,
    "SpatialPadd": _pad,
    "Spacingd": _space,
    "ToTensord": _convert,
}


def _add_intensity(preparation: Preparation, component: Component, images: Sequence[str]) -> bool:
    """Adds the steps of a transform of intensities; returns False for a transform of another kind."""
    steps = map_intensity(component)
    if steps is None:
        return False
    if preparation.padding is not None:
        component.refuse("it lies after a padding, whose values it would map too")
    if preparation.crop_after_grid and any(uses_statistics(step) for each in steps for step in each):
        component.refuse("it depends on what CropForegroundd has left of the resampled scan")
    side = preparation.before if preparation.grid is None else preparation.after
    for image in images:
        side.setdefault(image, []).append(steps)
    return True


def _one_side(
    before: list[tuple[Intensity, ...]], after: list[tuple[Intensity, ...]], resampled: bool, first: Component
) -> tuple[list[tuple[Intensity, ...]], bool]:
    """Brings all steps to one side of the resampling, where steps that commute with it allow that.

    Returns:
        The steps of each channel, and whether they lie before the resampling.
    """
    if not resampled or not any(before):
        return [early + late for early, late in zip(before, after, strict=True)], False
    if all(is_affine(step) for steps in after for step in steps):
        return [early + late for early, late in zip(before, after, strict=True)], True
    if all(is_affine(step) for steps in before for step in steps):
        return [early + late for early, late in zip(before, after, strict=True)], False
    first.refuse("intensities are mapped both before and after Spacingd, which cannot be mapped to a manifest")
