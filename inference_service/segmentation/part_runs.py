"""The parts of a model on one scan: preparation, sliding window and label decision of each."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.crops import ModelCrop, NonzeroCrop
from inference_service.contract.labels import PostProcessing
from inference_service.contract.manifest import Manifest
from inference_service.contract.part import Part
from inference_service.core.errors import ModelInvalid
from inference_service.core.threads import ThreadPool
from inference_service.imaging.geometry import Box, Volume, box
from inference_service.segmentation.labels.label_decision import (
    background_value,
    decide_labels,
    deciding_outputs,
    probabilities,
)
from inference_service.segmentation.labels.native_grid import DecideLabels, write_native_labels
from inference_service.segmentation.labels.postprocessing import postprocess
from inference_service.segmentation.preparation.crop import SegmentBy, crop_box
from inference_service.segmentation.preparation.intensities import filled_nonzero
from inference_service.segmentation.preparation.model_grid import Placement
from inference_service.segmentation.preparation.preprocessing import PreprocessedImage, preprocess
from inference_service.segmentation.resources import Resources
from inference_service.segmentation.windows.network import ActivatedNetwork, LoadedNetwork
from inference_service.segmentation.windows.sliding_window import StreamHooks, stream_logits
from inference_service.segmentation.windows.tiling import WindowPlan, plan_windows, window_shape

# Planes of logits beside the sums: those that are being divided, those that native_grid holds, and those in between.
_PLANES_UNDER_WAY = 6


class PartRuns:
    """The runs of a model's parts on one scan.

    Args:
        channels: A volume for each channel of the manifest.
        manifest: Describes the parts.
        networks: The loaded networks, by file.
        max_voxels: Upper limit of the voxels on a model's grid.
        resources: The job's threads, memory budget and monitor.
        dtype: Type of the mask.
        segment_by: Segments the scan by another model; None refuses to.

    Attributes:
        windows: Number of windows of the parts so far.
        segmented: The box of the scan that the parts so far have segmented.
    """

    def __init__(
        self,
        channels: Sequence[Volume],
        manifest: Manifest,
        networks: Mapping[str, LoadedNetwork],
        max_voxels: int,
        resources: Resources,
        dtype: type[np.unsignedinteger],
        segment_by: SegmentBy | None,
    ) -> None:
        self._channels = {channel.name: volume for channel, volume in zip(manifest.channels, channels, strict=True)}
        self._shape = channels[0].shape
        self._of_ct = manifest.modality == "CT"
        self._network_steps = [step for step in manifest.postprocessing if step.grid == "network"]
        self._networks = networks
        self._max_voxels = max_voxels
        self._resources = resources
        self._dtype = dtype
        self._segment_by = segment_by
        self._crops: dict[ModelCrop, Box] = {}
        self._steps = len(manifest.every_part)
        self._done = 0
        self._prepared: _Prepared | None = None
        self.windows = 0
        self.segmented: Box = box((0, 0) for _ in range(3))

    def segment(self, part: Part) -> NDArray[np.unsignedinteger]:
        """Returns the labels of a part on the scan's own grid, shape (i, j, k)."""
        labels = None if part.first_stage is None else self.segment(part.first_stage)
        mask = np.zeros(self._shape, dtype=self._dtype, order="F")
        with self._resources.monitor.clock.stage("preprocess"):
            prepared = self._prepare(part, mask.nbytes)
            if prepared is None:
                self._done += 1
                return mask
            if part.first_stage is not None and labels is not None:
                prepared.image.write_label_channels(
                    labels[prepared.crop],
                    part.first_stage.values,
                    inside=self._inside(part, prepared, mask.nbytes),
                    threads=self._resources.threads,
                )
        del labels
        image = prepared.image.image
        shape = image.shape[1:]
        plan = plan_windows(shape, window_shape(shape, part), part.overlap, part.placement, part.padding_sides)
        with self._loaded(part) as loaded:
            networks = _averaged(part, loaded)
            planes = stream_logits(
                image,
                [network.network for network in networks],
                part,
                plan,
                batching=networks[0].batching,
                threads=self._resources.threads,
                hooks=self._hooks(plan, mask.nbytes),
            )
            self._write(planes, prepared, part, plan, mask)
        self.windows += plan.count
        self._done += 1
        return mask

    @contextmanager
    def _loaded(self, part: Part) -> Iterator[list[LoadedNetwork]]:
        """Yields the loaded networks of a part. If there are other parts, their memory is freed in the end."""
        networks = [self._networks[network.file] for network in part.networks]
        try:
            with self._resources.monitor.clock.stage("model_load"):
                for network in networks:
                    network.load()
            yield networks
        finally:
            if self._steps > 1:
                # The memory of their runs would add up over the parts.
                for network in networks:
                    network.unload()

    def _prepare(self, part: Part, mask_bytes: int) -> "_Prepared | None":
        """Prepares the scan for a part, or returns the last preparation if it serves the part too; None if the crop
        keeps nothing."""
        if self._prepared is None or self._prepared.preparation != part.preparation:
            self._prepared = None
            channels = [self._channels[channel.name] for channel in part.channels]
            crop = self._crop(part, channels)
            if any(side.start == side.stop for side in crop):
                return None
            image = preprocess(
                [channel.cropped(crop) for channel in channels],
                part,
                of_ct=self._of_ct,
                max_voxels=self._max_voxels,
                # The mask's zeros take no memory until they are written.
                require_memory=lambda size_bytes: self._resources.memory.require(size_bytes + mask_bytes),
                threads=self._resources.threads,
            )
            self._prepared = _Prepared(part.preparation, crop, image)
            self.segmented = _union(self.segmented, self._prepared.segmented)
        return self._prepared

    def _inside(self, part: Part, prepared: "_Prepared", mask_bytes: int) -> NDArray[np.bool_] | None:
        """The voxels whose background a crop to non-zero voxels tells from that of the others; None: it does not."""
        if not isinstance(part.scan_crop, NonzeroCrop) or prepared.image.grid.is_scan_grid:
            return None
        cropped = [self._channels[channel.name].cropped(prepared.crop).voxels for channel in part.channels]
        self._resources.memory.require(3 * cropped[0].size + mask_bytes)
        return filled_nonzero(cropped)

    def _crop(self, part: Part, channels: Sequence[Volume]) -> Box:
        """Finds the box of the scan that a part is cropped to; what another model finds is found once."""
        crop = part.scan_crop
        if not isinstance(crop, ModelCrop) or self._segment_by is None:
            return crop_box(channels, crop)
        if crop not in self._crops:
            find_labels = partial(self._segment_by, channels=self._channels)
            self._crops[crop] = crop_box(channels, crop, find_labels)
        return self._crops[crop]

    def _write(
        self,
        planes: Iterator[NDArray[np.float32]],
        prepared: "_Prepared",
        part: Part,
        plan: WindowPlan,
        mask: NDArray[np.unsignedinteger],
    ) -> None:
        """Decides the labels of all planes, and writes them to a mask of zeros."""
        clock = self._resources.monitor.clock
        threads = self._resources.threads
        if part.interpolate == "probabilities" and part.average == "logits":
            planes = _activated(planes, part, threads)
        values = [output.value or 0 for output in deciding_outputs(part)]
        # Between corners of one label that different outputs decide, the label may be another. So the number of the
        # output is interpolated to, and replaced by its value at the end.
        numbered = len(set(values)) < len(values) and not self._network_steps
        decided = range(1, 1 + len(values)) if numbered else values
        decide: DecideLabels = partial(decide_labels, part=part, values=decided, dtype=self._dtype)
        cropped = mask[prepared.crop]
        scan = prepared.image.grid.reorientation.apply(cropped)
        placement = prepared.placement
        if self._network_steps:
            i, j, k = (prepared.image.image.shape[1:][axis] for axis in plan.axes)
            labels = np.empty((i, j, k), dtype=self._dtype)
            voxel_ml = prepared.image.grid.voxels_of_scan * next(iter(self._channels.values())).voxel_volume_ml
            planes = _cleaned(planes, decide, labels, self._network_steps, voxel_ml)
            decide = _only_channel
        planes = placement.bordered(planes, plan.axes, background_value(part))
        with clock.stage("map"):
            write_native_labels(
                clock.timed("windows", planes),
                decide=decide,
                target=scan[placement.region].transpose(plan.axes),
                taps=[placement.taps[axis] for axis in plan.axes],
                threads=threads,
            )
            if numbered:
                _replace(cropped, np.array([0, *values], dtype=self._dtype), threads)

    def _hooks(self, plan: WindowPlan, mask_bytes: int) -> StreamHooks:
        """The hooks of the sliding window: memory for its sums, and its part of the job's progress and times."""
        resources = self._resources

        def allocate(sums_shape: tuple[int, ...]) -> NDArray[np.float32]:
            plane_bytes = 4 * prod(sums_shape) // sums_shape[plan.stream_axis + 1]
            return resources.memory.allocate(sums_shape, reserved_bytes=mask_bytes + plane_bytes * _PLANES_UNDER_WAY)

        return StreamHooks(
            allocate=allocate,
            network_time=lambda: resources.monitor.clock.stage("network"),
            on_window=lambda done: resources.monitor.progress(
                "windows", (self._done + done / plan.count) / self._steps
            ),
        )


@dataclass(frozen=True)
class _Prepared:
    """A scan that is prepared for a part.

    Attributes:
        preparation: The fields of the part that it depends on.
        crop: The box of the scan that was prepared.
        image: What the network gets.
    """

    preparation: tuple[object, ...]
    crop: Box
    image: PreprocessedImage

    @property
    def placement(self) -> Placement:
        """The place of the image's logits on the cropped scan."""
        return self.image.grid.placement(self.image.sides)

    @property
    def segmented(self) -> Box:
        """The box of the scan that labels are written to."""
        i, j, k = (side.stop - side.start for side in self.crop)
        region = self.image.grid.reorientation.source_box(self.placement.region, (i, j, k))
        return box(
            (outer.start + inner.start, outer.start + inner.stop)
            for outer, inner in zip(self.crop, region, strict=True)
        )


def _averaged(part: Part, networks: Sequence[LoadedNetwork]) -> Sequence[LoadedNetwork]:
    """Returns the networks of a part so that they give the values that are averaged.

    Raises:
        ModelInvalid: They take batches of different sizes.
    """
    if len({network.batching for network in networks}) > 1:
        raise ModelInvalid("the networks of a part must take batches of one size")
    if part.average == "logits":
        return networks
    return [
        LoadedNetwork(ActivatedNetwork(each.network, partial(probabilities, part=part, axis=1)), each.batching)
        for each in networks
    ]


def _activated(planes: Iterator[NDArray[np.float32]], part: Part, threads: ThreadPool) -> Iterator[NDArray[np.float32]]:
    """Turns planes of logits (labels, h, w) into probabilities."""

    def activate(plane: NDArray[np.float32], rows: slice) -> None:
        probabilities(plane[:, rows], part, axis=0)

    for plane in planes:
        threads.for_each_slice(plane.shape[1], partial(activate, plane))
        yield plane


def _cleaned(
    planes: Iterator[NDArray[np.float32]],
    decide: DecideLabels,
    labels: NDArray[np.unsignedinteger],
    steps: Sequence[PostProcessing],
    voxel_volume_ml: float,
) -> Iterator[NDArray[np.float32]]:
    """Decides the labels on the network's grid and applies steps there.

    Args:
        planes: Planes of logits (labels, h, w).
        decide: Decides labels.
        labels: Shape (planes, h, w): overwritten.
        steps: The steps.
        voxel_volume_ml: Volume of a voxel of the network's grid.

    Yields:
        Planes of labels (1, h, w).
    """
    for index, plane in enumerate(planes):
        labels[index] = decide(plane)
    postprocess(labels.T, steps, voxel_volume_ml=voxel_volume_ml)
    for plane in labels:
        yield plane[np.newaxis].astype(np.float32)


def _only_channel(planes: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
    """Returns labels that are decided already."""
    labels: NDArray[np.unsignedinteger] = planes[0].astype(np.uint16)
    return labels


def _replace(mask: NDArray[np.unsignedinteger], values: NDArray[np.unsignedinteger], threads: ThreadPool) -> None:
    """Replaces each number in a mask by the value with its index, plane by plane."""
    planes = np.moveaxis(mask, 2, 0)

    def replace(indices: slice) -> None:
        for plane in planes[indices]:
            plane[...] = values.take(plane)

    threads.for_each_slice(len(planes), replace)


def _union(first: Box, second: Box) -> Box:
    """The smallest box around two boxes; an empty one does not count."""
    if any(side.start == side.stop for side in first):
        return second
    return box(
        (min(one.start, other.start), max(one.stop, other.stop)) for one, other in zip(first, second, strict=True)
    )
