"""Segments a scan by other installed models, to whose labels a model crops it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.crops import ModelCrop
from inference_service.contract.manifest import Manifest
from inference_service.core.errors import ModelInvalid, ModelNotFound
from inference_service.core.progress import Stage
from inference_service.engine.model_registry import FindModel, Model, find_model
from inference_service.engine.session_cache import LoadedModel
from inference_service.imaging.geometry import Volume
from inference_service.segmentation.loaded_networks import loaded_networks
from inference_service.segmentation.preparation.crop import SegmentBy
from inference_service.segmentation.resources import Resources
from inference_service.segmentation.volume_segmentation import segment_volume


@dataclass(frozen=True)
class CropModels:
    """The models that a model's crops name, directly or through one another.

    Attributes:
        crops: For each crop of the model, the model that it names, with the models that this one's crops name.
    """

    crops: Mapping[ModelCrop, tuple[Model, "CropModels"]]

    @classmethod
    def of(cls, model: Model, find: FindModel | None = None, *, cropped: tuple[str, ...] = ()) -> "CropModels":
        """Finds the models.

        Args:
            model: The model.
            find: Finds each of them; None: they lie in the folder of all models, like the model itself.
            cropped: Titles of the models that are cropped to what this one finds.

        Raises:
            ModelNotFound: One is not installed.
            ModelInvalid: Models crop to one another's labels, or a crop's model has no such channels or labels.
            StorageUnavailable: The models cannot be read.
        """
        find = find or partial(find_model, model.folder.parent.parent)
        crops: dict[ModelCrop, tuple[Model, CropModels]] = {}
        for part in model.manifest.every_part:
            crop = part.scan_crop
            if not isinstance(crop, ModelCrop) or crop in crops:
                continue
            try:
                other = find(crop.model, crop.version)
            except ModelNotFound as error:
                raise ModelNotFound(f"model {model.title} crops the scan by another model: {error}") from error
            path = (*cropped, model.title)
            if other.title in path:
                raise ModelInvalid(f"models crop the scan by one another: {', '.join((*path, other.title))}")
            _check(model, other, crop)
            crops[crop] = (other, cls.of(other, find, cropped=path))
        return cls(crops)

    @property
    def models(self) -> list[Model]:
        """All of the models, each once, in the order in which they are found."""
        found: dict[str, Model] = {}
        for model, others in self.crops.values():
            found |= {each.title: each for each in (model, *others.models)}
        return [*found.values()]

    def segment_by(
        self, load: Callable[[Model], LoadedModel], *, batch_size: int, max_voxels: int, resources: Resources
    ) -> SegmentBy:
        """Returns the function by which `segment_volume` segments a scan with these models.

        Args:
            load: Loads a model; each is loaded when it is needed.
            batch_size: Windows in each run, where the model's own batch dimension is free.
            max_voxels: Scans that become larger on a model's grid are refused.
            resources: The job's; its progress stays in the stage "preprocess".
        """
        resources = replace(resources, monitor=replace(resources.monitor, progress=_within_preprocessing(resources)))

        def segment(crop: ModelCrop, channels: Mapping[str, Volume]) -> NDArray[np.unsignedinteger]:
            model, others = self.crops[crop]
            networks = loaded_networks(load(model), batch_size)
            segment_by = others.segment_by(load, batch_size=batch_size, max_voxels=max_voxels, resources=resources)
            try:
                return segment_volume(
                    _channels(model.manifest, channels),
                    model.manifest,
                    networks,
                    max_voxels=max_voxels,
                    resources=resources,
                    segment_by=segment_by,
                ).mask
            finally:
                for network in networks.values():
                    network.unload()

        return segment


def _check(model: Model, other: Model, crop: ModelCrop) -> None:
    """Checks that a model can segment the scans of another one, and that it has the labels of the crop."""
    names = {channel.name for channel in model.manifest.channels}
    missing = [channel.name for channel in other.manifest.channels if channel.name not in names]
    if missing and len(other.manifest.channels) > 1:
        raise ModelInvalid(f"model {model.title} has no channels {missing}, which model {other.title} needs to crop it")
    unknown = sorted({*crop.labels} - {label.value for label in other.manifest.labels})
    if unknown:
        raise ModelInvalid(f"model {model.title} crops to labels that model {other.title} does not have: {unknown}")


def _channels(manifest: Manifest, channels: Mapping[str, Volume]) -> list[Volume]:
    """The channels of another model, by name; its only one may have another name than the first of the scan."""
    first = next(iter(channels.values()))
    return [channels.get(channel.name, first) for channel in manifest.channels]


def _within_preprocessing(resources: Resources) -> Callable[[Stage, float], None]:
    """Follows the windows of another model as a part of the preprocessing."""

    def progress(stage: Stage, share: float) -> None:
        if stage == "windows":
            resources.monitor.progress("preprocess", share)

    return progress
