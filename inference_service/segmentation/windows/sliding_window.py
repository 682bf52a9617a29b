"""Sliding-window inference: blends the logits of overlapping windows and yields them plane by plane.

Memory holds the logits of one window's depth, not of the whole volume: planes that no later window touches are yielded
and dropped at once.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise, product

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.manifest import Manifest
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.segmentation.windows.aggregator import Aggregator, FallbackAggregator, HostAggregator, HostLogits
from inference_service.segmentation.windows.network import SINGLE_WINDOWS, Batching, DeviceNetwork, Network
from inference_service.segmentation.windows.tiling import WindowPlan, importance_map
from inference_service.segmentation.windows.window_runs import NetworkTime, WindowLogits, mirrorings, run_windows

# Finished planes that are normalised and made contiguous at a time; fewer where they are larger than `_BAND_BYTES`.
_PLANES_AT_A_TIME = 8
_BAND_BYTES = 32 * 2**20


def zeros_in_memory(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Allocates zeros in the worker's memory."""
    return np.zeros(shape, dtype=np.float32)


@dataclass(frozen=True)
class StreamHooks:
    """Functions of the caller that `stream_logits` calls.

    Attributes:
        allocate: Returns zeros of a shape for the sums of logits. It is called after the first run of the network, when
            the network's own memory is already allocated.
        network_time: Returns a context that is entered while the network is waited for.
        on_window: Called after each window with the number of windows done. An exception that it raises ends the run.
    """

    allocate: Callable[[tuple[int, ...]], NDArray[np.float32]] = zeros_in_memory
    network_time: NetworkTime = nullcontext
    on_window: Callable[[int], None] = lambda done: None


NO_HOOKS = StreamHooks()


def stream_logits(
    image: NDArray[np.float32],
    network: Network | DeviceNetwork,
    manifest: Manifest,
    plan: WindowPlan,
    *,
    batching: Batching = SINGLE_WINDOWS,
    threads: ThreadPool = SINGLE_THREAD,
    hooks: StreamHooks = NO_HOOKS,
) -> Iterator[NDArray[np.float32]]:
    """Runs the network over an image.

    Args:
        image: Shape (i, j, k), on the model's grid and normalised.
        network: The loaded network. The logits of a `DeviceNetwork` are aggregated on its device, and in the worker's
            memory where the device has no memory for them.
        manifest: Gives the window, blending, mirroring, labels and padding.
        plan: Where the windows lie.
        batching: How windows are batched.
        threads: Share the work beside the network.
        hooks: Functions of the caller.

    Yields:
        The blended logits of each plane along `plan.stream_axis`, in order: shape (labels, h, w), h and w in the order
        of the image's axes.

    Raises:
        OutOfMemory, GpuOutOfMemory: The smallest batch does not fit into memory.
        ModelInvalid: The logits have another shape than the manifest's, or are not finite.
    """
    if any(before or after for before, after in plan.pads):
        image = np.pad(image, plan.pads, constant_values=manifest.padding_value)
    inside = [slice(before, size - after) for (before, after), size in zip(plan.pads, image.shape, strict=True)]
    inside_h, inside_w = (inside[axis] for axis in plan.axes[1:])
    run = network.run if isinstance(network, DeviceNetwork) else lambda windows: HostLogits(network.run(windows))
    windows = run_windows(image, run, manifest, plan, batching, hooks.network_time)
    planes = _blend(windows, image.shape, network, manifest, plan, threads, hooks)
    for index, plane in enumerate(planes):
        if inside[plan.stream_axis].start <= index < inside[plan.stream_axis].stop:
            yield plane[:, inside_h, inside_w]


def _blend(
    windows: Iterator[WindowLogits],
    shape: tuple[int, ...],
    network: Network | DeviceNetwork,
    manifest: Manifest,
    plan: WindowPlan,
    threads: ThreadPool,
    hooks: StreamHooks,
) -> Iterator[NDArray[np.float32]]:
    """Aggregates windows, and yields each plane (labels, h, w) of the padded volume once no later window touches it."""
    axis = plan.stream_axis
    weights = importance_map(manifest.window, manifest.blending)
    runs_per_window = len(mirrorings(manifest.mirror_axes))
    sums_shape = (len(manifest.labels), *(manifest.window[i] if i == axis else size for i, size in enumerate(shape)))

    def host_aggregator(earlier_sums: NDArray[np.float32] | None = None) -> Aggregator:
        sums = hooks.allocate(sums_shape)
        if earlier_sums is not None:
            sums += earlier_sums
        return HostAggregator(sums, axis, weights, threads)

    # The sums are allocated after the first run, when the network's own memory is already allocated.
    first = next(windows)
    aggregator: Aggregator
    if isinstance(network, DeviceNetwork):
        aggregator = FallbackAggregator(partial(network.aggregator, sums_shape, axis, weights), host_aggregator)
    else:
        aggregator = host_aggregator()
    windows = chain([first], windows)
    del first
    for done, (corner, following) in enumerate(pairwise([*plan.corners(), shape]), start=1):
        i, j, k = (0 if each == axis else start for each, start in enumerate(corner))
        for window in islice(windows, runs_per_window):
            aggregator.add(*window, (i, j, k))
            del window
        hooks.on_window(done)
        finished = range(corner[axis], following[axis])
        if finished:
            window_weights = runs_per_window * np.moveaxis(weights, axis, 0)
            yield from _finished_planes(aggregator, finished, plan, window_weights, sums_shape)
            del window_weights


def _finished_planes(
    aggregator: Aggregator,
    finished: range,
    plan: WindowPlan,
    weights: NDArray[np.float32],
    sums_shape: tuple[int, ...],
) -> Iterator[NDArray[np.float32]]:
    """Yields the first planes of the sums, divided by their total weights, and moves the other planes up.

    Args:
        aggregator: Holds the sums.
        finished: Indices in the volume of the planes that no later window touches.
        plan: Where the windows lie.
        weights: The importance map of a window, shape (depth, h, w), times the number of its mirrorings.
        sums_shape: Shape of the sums, (labels, i, j, k).
    """
    height, width = (sums_shape[axis + 1] for axis in plan.axes[1:])
    step = max(1, min(_PLANES_AT_A_TIME, _BAND_BYTES // (4 * sums_shape[0] * height * width)))
    for start in range(0, len(finished), step):
        band = slice(start, min(start + step, len(finished)))
        total_weights = np.zeros((band.stop - band.start, height, width), dtype=np.float32)
        for plane, index in zip(total_weights, finished[band], strict=True):
            _add_weights(plane, index, plan, weights)
        yield from aggregator.means(band, total_weights)
    aggregator.move_up(len(finished))


def _add_weights(plane: NDArray[np.float32], index: int, plan: WindowPlan, weights: NDArray[np.float32]) -> None:
    """Adds the weights of all windows that contain plane `index` of the volume to an array (h, w)."""
    depth, height, width = weights.shape
    starts_d, starts_h, starts_w = (plan.starts[axis] for axis in plan.axes)
    for start in starts_d:
        if start <= index < start + depth:
            for top, left in product(starts_h, starts_w):
                plane[top : top + height, left : left + width] += weights[index - start]
