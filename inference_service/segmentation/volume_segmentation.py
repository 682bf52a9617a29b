"""From a volume to its mask: preprocessing, sliding window, labels on the native grid, postprocessing."""

from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.manifest import Manifest
from inference_service.core.report_warnings import ReportWarning
from inference_service.engine.session import Session
from inference_service.imaging.geometry import Box, Volume
from inference_service.segmentation.crop import crop_box
from inference_service.segmentation.label_decision import decide_labels
from inference_service.segmentation.native_grid import write_native_labels
from inference_service.segmentation.postprocessing import postprocess
from inference_service.segmentation.preprocessing import preprocess
from inference_service.segmentation.resources import Resources
from inference_service.segmentation.windows.device_aggregator import DeviceSession
from inference_service.segmentation.windows.network import SINGLE_WINDOWS, Batching, DeviceNetwork, Network
from inference_service.segmentation.windows.sliding_window import StreamHooks, stream_logits
from inference_service.segmentation.windows.tiling import WindowPlan, plan_windows

# Planes of logits beside the sums: those that are being divided, those that native_grid holds, and those in between.
_PLANES_UNDER_WAY = 6


@dataclass(frozen=True)
class VolumeSegmentation:
    """The segmentation of one volume.

    Attributes:
        mask: Labels on the volume's own grid, shape (i, j, k), in the smallest unsigned dtype that holds them.
        windows: Number of windows that cover the volume.
        cropped_to: The part of the volume that was segmented; the mask is 0 outside this box.
        warnings: Warnings about arrays that did not fit into memory.
    """

    mask: NDArray[np.unsignedinteger]
    windows: int
    cropped_to: Box
    warnings: list[ReportWarning]


def segment_with_session(
    volume: Volume, manifest: Manifest, session: Session, *, batch_size: int, max_voxels: int, resources: Resources
) -> VolumeSegmentation:
    """Segments one volume with a loaded session.

    The batch size follows the session's network. On a GPU, the next batch runs while the last one is aggregated.

    Args:
        volume: The scan; its values are finite.
        manifest: Describes the network's input and output.
        session: The loaded model.
        batch_size: Windows in each run, where the model's own batch dimension is free.
        max_voxels: Scans that become larger on the model's grid are refused.
        resources: The job's threads, memory budget and monitor.

    Raises:
        InputTooLarge: The scan on the model's grid is too large.
        OutOfMemory, GpuOutOfMemory: The job does not fit into memory.
        ModelInvalid: The network's logits are not finite, or of another shape than the manifest's.
    """
    fixed = session.fixed_batch_size
    batching = Batching(fixed or batch_size, may_shrink=fixed is None, run_ahead=session.on_gpu)
    network = DeviceSession(session) if session.aggregates_on_device else session
    return segment_volume(volume, manifest, network, max_voxels=max_voxels, batching=batching, resources=resources)


def segment_volume(
    volume: Volume,
    manifest: Manifest,
    network: Network | DeviceNetwork,
    *,
    max_voxels: int,
    batching: Batching = SINGLE_WINDOWS,
    resources: Resources | None = None,
) -> VolumeSegmentation:
    """Segments one volume in memory.

    Args:
        volume: The scan; its values are finite.
        manifest: Describes the network's input and output.
        network: The loaded network.
        max_voxels: Scans that become larger on the model's grid are refused.
        batching: How windows are batched.
        resources: The job's threads, memory budget and monitor; None: the calling thread and the machine's memory.

    Raises:
        InputTooLarge: The scan on the model's grid is too large.
        OutOfMemory, GpuOutOfMemory: The job does not fit into memory.
        ModelInvalid: The network's logits are not finite, or of another shape than the manifest's.
    """
    resources = resources or Resources()
    values = [label.value for label in manifest.labels]
    dtype = np.uint8 if max(values) <= np.iinfo(np.uint8).max else np.uint16
    mask = np.zeros(volume.shape, dtype=dtype, order="F")
    with resources.monitor.stage("preprocess"):
        crop = crop_box(volume, manifest.crop)
        prepared = preprocess(
            volume.cropped(crop),
            manifest,
            max_voxels=max_voxels,
            # The mask's zeros take no memory until they are written.
            require_memory=lambda size_bytes: resources.memory.require(size_bytes + mask.nbytes),
            threads=resources.threads,
        )
    plan = plan_windows(prepared.image.shape, manifest.window, manifest.overlap, manifest.placement)
    hooks = _hooks(plan, mask.nbytes, resources)
    planes = stream_logits(
        prepared.image, network, manifest, plan, batching=batching, threads=resources.threads, hooks=hooks
    )
    clock = resources.monitor.clock
    with clock.stage("map"):
        write_native_labels(
            clock.timed("windows", planes),
            depth=prepared.image.shape[plan.stream_axis],
            decide=partial(decide_labels, activation=manifest.activation, values=values, dtype=dtype),
            target=np.moveaxis(prepared.reorientation.apply(mask[crop]), plan.stream_axis, 0),
            interpolations=[prepared.logits_interpolations[axis] for axis in plan.axes],
            threads=resources.threads,
        )
    with resources.monitor.stage("postprocess"):
        postprocess(mask, manifest.postprocessing, voxel_volume_ml=volume.voxel_volume_ml)
    return VolumeSegmentation(mask, plan.count, crop, resources.memory.warnings)


def _hooks(plan: WindowPlan, mask_bytes: int, resources: Resources) -> StreamHooks:
    """The hooks of the sliding window: memory for its sums, and its part of the job's progress and times."""

    def allocate(sums_shape: tuple[int, ...]) -> NDArray[np.float32]:
        plane_bytes = 4 * prod(sums_shape) // sums_shape[plan.stream_axis + 1]
        return resources.memory.allocate(sums_shape, reserved_bytes=mask_bytes + plane_bytes * _PLANES_UNDER_WAY)

    return StreamHooks(
        allocate=allocate,
        network_time=lambda: resources.monitor.clock.stage("network"),
        on_window=lambda done: resources.monitor.progress("windows", done / plan.count),
    )
