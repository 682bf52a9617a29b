"""Sliding-window inference: blends the logits of overlapping windows and yields them plane by plane.

Memory holds the logits of one window's depth, not of the whole volume: planes that no later window touches are yielded
and dropped at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, product

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.part import Part
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.segmentation.windows.aggregator import Aggregator, FallbackAggregator, HostAggregator, HostLogits
from inference_service.segmentation.windows.network import SINGLE_WINDOWS, Batching, DeviceNetwork, Network
from inference_service.segmentation.windows.tiling import WindowPlan, importance_map
from inference_service.segmentation.windows.window_runs import (
    NetworkTime,
    RunNetwork,
    WindowLogits,
    WindowOrder,
    run_windows,
)

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
    networks: Sequence[Network | DeviceNetwork],
    part: Part,
    plan: WindowPlan,
    *,
    batching: Batching = SINGLE_WINDOWS,
    threads: ThreadPool = SINGLE_THREAD,
    hooks: StreamHooks = NO_HOOKS,
) -> Iterator[NDArray[np.float32]]:
    """Runs the networks of a part over an image, and averages their logits.

    Args:
        image: Shape (channels, i, j, k), on the model's grid and normalised.
        networks: The loaded networks, whose logits are averaged. All are of one kind. Logits of `DeviceNetwork`s are
            aggregated on their device, and in the worker's memory where the device has no memory for them.
        part: Gives blending, mirroring, outputs and padding.
        plan: Where the windows lie.
        batching: How windows are batched.
        threads: Share the work beside the networks.
        hooks: Functions of the caller.

    Yields:
        The blended logits of each plane along `plan.stream_axis`, in order: shape (labels, h, w), h and w in the order
        of the image's axes.

    Raises:
        OutOfMemory, GpuOutOfMemory: The smallest batch does not fit into memory.
        ModelInvalid: The logits have another shape than the manifest's, or are not finite.
    """
    image = _padded(image, part, plan)
    shape = image.shape[1:]
    inside = [slice(before, size - after) for (before, after), size in zip(plan.pads, shape, strict=True)]
    inside_h, inside_w = (inside[axis] for axis in plan.axes[1:])
    order = WindowOrder(plan, part.mirror_axes, len(networks), batching.size)
    windows = run_windows(image, [_runner(network) for network in networks], part, order, batching, hooks.network_time)
    weights = importance_map(plan.window, part.blending)
    extent = [order.depth if axis == plan.stream_axis else size for axis, size in enumerate(shape)]
    sums = _Sums((len(part.outputs), *extent), plan, weights, order.runs_per_window)
    planes = _blend(windows, sums, partial(_new_aggregator, networks[0], sums, threads, hooks), hooks.on_window)
    for index, plane in enumerate(planes):
        if inside[plan.stream_axis].start <= index < inside[plan.stream_axis].stop:
            yield plane[:, inside_h, inside_w]


@dataclass(frozen=True)
class _Sums:
    """The sums of weighted logits that an aggregator holds.

    Attributes:
        shape: Shape (labels, i, j, k); as deep along the stream axis as the windows that run before planes leave.
        plan: Where the windows lie.
        weights: Importance map of a window, shape (*window).
        runs_per_window: How often each window is added: by each network, in each mirroring.
    """

    shape: tuple[int, ...]
    plan: WindowPlan
    weights: NDArray[np.float32]
    runs_per_window: int


def _padded(image: NDArray[np.float32], part: Part, plan: WindowPlan) -> NDArray[np.float32]:
    """Pads the axes that are shorter than a window; the image itself where there is none."""
    if not any(before or after for before, after in plan.pads):
        return image
    pads = ((0, 0), *plan.pads)
    if part.padding == "constant":
        return np.pad(image, pads, constant_values=part.padding_value)
    return np.pad(image, pads, mode=part.padding)


def _runner(network: Network | DeviceNetwork) -> RunNetwork:
    return network.run if isinstance(network, DeviceNetwork) else lambda windows: HostLogits(network.run(windows))


def _new_aggregator(
    network: Network | DeviceNetwork, sums: _Sums, threads: ThreadPool, hooks: StreamHooks
) -> Aggregator:
    """Returns an empty aggregator, on the device of the network if it can aggregate there."""
    axis = sums.plan.stream_axis

    def host_aggregator(earlier_sums: NDArray[np.float32] | None = None) -> Aggregator:
        held = hooks.allocate(sums.shape)
        if earlier_sums is not None:
            held += earlier_sums
        return HostAggregator(held, axis, sums.weights, threads)

    if isinstance(network, DeviceNetwork):
        return FallbackAggregator(partial(network.aggregator, sums.shape, axis, sums.weights), host_aggregator)
    return host_aggregator()


def _blend(
    windows: Iterator[WindowLogits],
    sums: _Sums,
    new_aggregator: Callable[[], Aggregator],
    on_window: Callable[[int], None],
) -> Iterator[NDArray[np.float32]]:
    """Aggregates windows, and yields each plane (labels, h, w) of the padded volume once no later window touches it."""
    axis = sums.plan.stream_axis
    # The sums are allocated after the first run, when the network's own memory is already allocated.
    first = next(windows)
    aggregator = new_aggregator()
    windows = chain([first], windows)
    del first
    done = count(1)
    held_from = 0
    for window in windows:
        i, j, k = (start - held_from if each == axis else start for each, start in enumerate(window.corner))
        aggregator.add(window.batch, window.number, window.flipped_axes, (i, j, k))
        finished = range(held_from, window.following)
        del window
        whole, runs = divmod(next(done), sums.runs_per_window)
        if runs == 0:
            on_window(whole)
        if finished:
            yield from _finished_planes(aggregator, finished, sums)
            held_from = finished.stop


def _finished_planes(aggregator: Aggregator, finished: range, sums: _Sums) -> Iterator[NDArray[np.float32]]:
    """Yields the first planes of the sums, divided by their total weights, and moves the other planes up.

    Args:
        aggregator: Holds the sums.
        finished: Indices in the volume of the planes that no later window touches.
        sums: Gives the weights of all windows.
    """
    plan = sums.plan
    height, width = (sums.shape[axis + 1] for axis in plan.axes[1:])
    weights = sums.runs_per_window * np.moveaxis(sums.weights, plan.stream_axis, 0)
    step = max(1, min(_PLANES_AT_A_TIME, _BAND_BYTES // (4 * sums.shape[0] * height * width)))
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
