"""From a scan to its mask: each part of a model in turn, then postprocessing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.manifest import Manifest
from inference_service.core.errors import BadRequest
from inference_service.core.report_warnings import ReportWarning
from inference_service.imaging.geometry import Box, Volume
from inference_service.segmentation.labels.postprocessing import postprocess
from inference_service.segmentation.part_runs import PartRuns
from inference_service.segmentation.preparation.crop import SegmentBy
from inference_service.segmentation.resources import Resources
from inference_service.segmentation.windows.network import LoadedNetwork


@dataclass(frozen=True)
class VolumeSegmentation:
    """The segmentation of one scan.

    Attributes:
        mask: Labels on the scan's own grid, shape (i, j, k), in the smallest unsigned dtype that holds them.
        windows: Number of windows that cover the scan, of all parts together.
        cropped_to: The part of the scan that was segmented; the mask is 0 outside this box.
        warnings: Warnings about arrays that did not fit into memory.
    """

    mask: NDArray[np.unsignedinteger]
    windows: int
    cropped_to: Box
    warnings: list[ReportWarning]


def segment_volume(
    channels: Sequence[Volume],
    manifest: Manifest,
    networks: Mapping[str, LoadedNetwork],
    *,
    max_voxels: int,
    resources: Resources | None = None,
    segment_by: SegmentBy | None = None,
) -> VolumeSegmentation:
    """Segments one scan in memory.

    Args:
        channels: A volume for each channel of the manifest, all on one grid; their values are finite.
        manifest: Describes the parts of the model.
        networks: The loaded networks, by file.
        max_voxels: Scans that become larger on the model's grid are refused.
        resources: The job's threads, memory budget and monitor; None: the calling thread and the machine's memory.
        segment_by: Segments the scan by another model, to whose labels a part crops it.

    Raises:
        BadRequest: The scan has another number of channels than the model.
        InputTooLarge: The scan on the model's grid is too large.
        OutOfMemory, GpuOutOfMemory: The job does not fit into memory.
        ModelInvalid: A network's logits are not finite, or of another shape than the manifest's; or a part crops to
            labels of another model, and none is given.
    """
    if len(channels) != len(manifest.channels):
        names = ", ".join(channel.name for channel in manifest.channels)
        raise BadRequest(
            f"model {manifest.name} needs {len(manifest.channels)} channels ({names}), got {len(channels)}"
        )
    resources = resources or Resources()
    # Voxels are labelled by number of output first, where several outputs have one value.
    largest = max(*(label.value for label in manifest.labels), *(len(part.outputs) for part in manifest.every_part))
    dtype = np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16
    runs = PartRuns(channels, manifest, networks, max_voxels, resources, dtype, segment_by)
    resources.monitor.progress("preprocess", 0.0)
    mask = runs.segment(manifest.all_parts[0])
    for part in manifest.all_parts[1:]:
        _overlay(mask, runs.segment(part))
    with resources.monitor.stage("postprocess"):
        steps = [step for step in manifest.postprocessing if step.grid == "scan"]
        postprocess(mask, steps, voxel_volume_ml=channels[0].voxel_volume_ml)
    return VolumeSegmentation(mask, runs.windows, runs.segmented, resources.memory.warnings)


def _overlay(mask: NDArray[np.unsignedinteger], upper: NDArray[np.unsignedinteger]) -> None:
    """Writes the labels of a mask over those of another, plane by plane."""
    for below, above in zip(np.moveaxis(mask, 2, 0), np.moveaxis(upper, 2, 0), strict=True):
        np.copyto(below, above, where=above != 0)
