"""From a volume to its mask: preprocess, run windows, map to the native grid, postprocess."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from inference_service.contract.manifest import Manifest
from inference_service.core.memory_budget import MemoryBudget
from inference_service.core.progress import Progress, StageClock
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.geometry import Box, Volume
from inference_service.segmentation.crop import crop_box
from inference_service.segmentation.label_decision import decide_labels
from inference_service.segmentation.native_grid import write_native_labels
from inference_service.segmentation.postprocessing import postprocess
from inference_service.segmentation.preprocessing import preprocess
from inference_service.segmentation.sliding_window import DeviceNetwork, Network, stream_logits
from inference_service.segmentation.tiling import plan_windows

# Divided by their weights, two by two; held by the mapping; on their way to it.
_PLANES_UNDER_WAY = 6


@contextmanager
def job_threads(count: int) -> Iterator[ThreadPool]:
    """The threads of one job, and none but them: BLAS has its own, which would fight with these for the cores."""
    with threadpool_limits(1, user_api="blas"), ThreadPool(count) as threads:
        yield threads


@dataclass(frozen=True)
class VolumeSegmentation:
    """What becomes of a volume.

    Attributes:
        mask: On the volume's own grid, with the least dtype that holds the labels.
        windows: How many windows were run.
        cropped_to: The part of the volume that was looked at.
        notes: What had to be done differently than usual, in words.
    """

    mask: NDArray[np.unsignedinteger]
    windows: int
    cropped_to: Box
    notes: list[str]


def segment_volume(
    volume: Volume,
    manifest: Manifest,
    network: Network,
    *,
    max_voxels: int,
    clock: StageClock,
    progress: Progress = lambda stage, share: None,
    batch: int = 1,
    smaller_batch: bool = True,
    ahead: bool = False,
    on_device: DeviceNetwork | None = None,
    threads: ThreadPool = SINGLE_THREAD,
    memory: MemoryBudget | None = None,
) -> VolumeSegmentation:
    """Segments one volume in memory.

    Args:
        volume: The scan; its values are finite.
        manifest: How the network is fed and what its outputs stand for.
        network: The loaded model.
        max_voxels: Scans that become larger on the model's grid are refused.
        clock: Takes the seconds of each stage.
        progress: Told of every stage and window.
        batch: Windows that the network is given at a time.
        smaller_batch: Whether it takes fewer too.
        ahead: Whether it runs while the results before are added up.
        on_device: The same network, where its logits are added up where it runs.
        threads: For all that is not the network.
        memory: What there is of it; None asks the machine.

    Raises:
        InputTooLarge: The model's grid would be larger than that.
        OutOfMemory: The job needs more memory than there is.
        GpuError: The GPU has not enough memory for it, or failed.
    """
    memory = memory or MemoryBudget()
    values = [label.value for label in manifest.labels]
    dtype = np.uint8 if max(values) <= np.iinfo(np.uint8).max else np.uint16
    mask = np.zeros(volume.shape, dtype=dtype, order="F")
    progress("preprocess", 0.0)
    with clock.stage("preprocess"):
        kept = crop_box(volume, manifest.crop)
        prepared = preprocess(
            volume.cropped(kept), manifest, max_voxels=max_voxels, threads=threads,
            # The mask's zeros take no memory before they are written.
            require=lambda size_bytes: memory.require(size_bytes + mask.nbytes),
        )  # fmt: skip
    plan = plan_windows(prepared.image.shape, manifest.window, manifest.overlap, manifest.placement)
    planes = stream_logits(
        prepared.image, network, manifest, plan,
        batch=batch, smaller_batch=smaller_batch, ahead=ahead, on_device=on_device, threads=threads,
        allocate=lambda shape: memory.allocate(
            shape, reserved_bytes=mask.nbytes + _planes_bytes(shape, plan.stream_axis)
        ),
        network_time=lambda: clock.stage("network"),
        on_window=lambda done: progress("windows", done / plan.count),
    )  # fmt: skip
    with clock.stage("map"):
        write_native_labels(
            clock.timed("windows", planes),
            depth=prepared.image.shape[plan.stream_axis],
            decide=partial(decide_labels, activation=manifest.activation, values=values, dtype=dtype),
            target=np.moveaxis(prepared.reorientation.apply(mask[kept]), plan.stream_axis, 0),
            kinds=[prepared.logits_kinds[axis] for axis in plan.axes],
            threads=threads,
        )
    progress("postprocess", 0.0)
    with clock.stage("postprocess"):
        postprocess(mask, manifest.postprocessing, voxel_volume_ml=volume.voxel_volume_ml)
    return VolumeSegmentation(mask, plan.count, kept, memory.warnings)


def _planes_bytes(held: tuple[int, ...], axis: int) -> int:
    """What planes take on their way from the logits held, of shape (labels, i, j, k), to the scan's grid."""
    return 4 * prod(held) // held[axis + 1] * _PLANES_UNDER_WAY
