"""The sliding window: a network run over a volume in overlapping windows, its logits blended and streamed out.

Memory holds the logits of one window's depth, not of the whole volume: planes that no later window
touches leave at once.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain, combinations, islice, pairwise, product
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.manifest import Manifest
from inference_service.core.errors import GpuOutOfMemory, ModelInvalid, OutOfMemory
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.segmentation.aggregator import (
    Aggregator,
    BatchLogits,
    Corner,
    FallbackAggregator,
    HostAggregator,
    HostLogits,
    TransferableAggregator,
)
from inference_service.segmentation.tiling import Shape, WindowPlan, importance_map

logger = logging.getLogger(__name__)

Allocate = Callable[[tuple[int, ...]], NDArray[np.float32]]

# Finished planes that are divided by their weights, and brought into one piece of memory each, at a time; fewer where
# they are large.
_PLANES_AT_A_TIME = 8
_LEAVING_BYTES = 32 * 2**20


class _WindowLogits(NamedTuple):
    """One window's logits: which of a batch, and along which axes they are mirrored."""

    result: BatchLogits
    number: int
    flip: tuple[int, ...]


class Network(Protocol):
    """What the engine needs of a loaded model."""

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turns windows (batch, channels, *window) into logits (batch, labels, *window), a new array."""


class DeviceNetwork(Protocol):
    """A loaded model whose logits may stay on the device that it runs on."""

    def run(self, windows: NDArray[np.float32]) -> BatchLogits:
        """The same as `Network.run`, but for where the logits are."""

    def aggregator(self, shape: tuple[int, ...], axis: int, weights: NDArray[np.float32]) -> TransferableAggregator:
        """Sums on that device.

        Raises:
            OutOfMemory: There is no memory for them.
        """


def zeros_in_memory(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Where logits are held unless the caller knows better: zeros in memory."""
    return np.zeros(shape, dtype=np.float32)


def stream_logits(
    image: NDArray[np.float32],
    network: Network,
    manifest: Manifest,
    plan: WindowPlan,
    *,
    batch: int = 1,
    smaller_batch: bool = True,
    ahead: bool = False,
    on_device: DeviceNetwork | None = None,
    threads: ThreadPool = SINGLE_THREAD,
    allocate: Allocate = zeros_in_memory,
    network_time: Callable[[], AbstractContextManager[None]] = nullcontext,
    on_window: Callable[[int], None] = lambda done: None,
) -> Iterator[NDArray[np.float32]]:
    """Runs the network over an image.

    Args:
        image: Shape (i, j, k), on the model's grid and normalised.
        network: The loaded model.
        manifest: Says window, blending, mirroring, labels and padding.
        plan: Where the windows lie.
        batch: Windows that the network is given at a time, always as many: the last ones are filled up.
        smaller_batch: Whether the network takes fewer too: then the batch is halved where it needs more memory than
            there is.
        ahead: Whether the network runs while the results before are added up, at the price of a batch more of them
            in memory: where it does not run on the CPU, that is.
        on_device: The same network, where its logits are to be added up on its own device; where that has no memory for
            them they are added up here.
        threads: For what is not the network.
        allocate: Gives the zeros, of the shape asked for, that logits are added up in. Asked after the first run, when
            what the network takes for itself is taken.
        network_time: Entered while the network is waited for.
        on_window: Called after each window with the number of windows done; what it raises ends the run.

    Yields:
        The blended logits of each plane along the plan's axis in order: shape (labels, h, w), h and w in array order.

    Raises:
        OutOfMemory, GpuOutOfMemory: The least batch needs more memory than there is.
        ModelInvalid: The network gives another shape than it should, or values that are not finite.
    """
    if any(before or after for before, after in plan.pads):
        image = np.pad(image, plan.pads, constant_values=manifest.padding_value)
    inside = [slice(before, size - after) for (before, after), size in zip(plan.pads, image.shape, strict=True)]
    inside_h, inside_w = (inside[axis] for axis in plan.axes[1:])
    run = on_device.run if on_device else lambda windows: HostLogits(network.run(windows))
    results = _run_windows(
        image, run, manifest, plan, batch, smaller_batch=smaller_batch, ahead=ahead, network_time=network_time
    )
    planes = _aggregate(results, image.shape, manifest, plan, on_device, threads, allocate, on_window)
    for index, plane in enumerate(planes):
        if inside[plan.stream_axis].start <= index < inside[plan.stream_axis].stop:
            yield plane[:, inside_h, inside_w]


def _run_windows(
    image: NDArray[np.float32],
    run_network: Callable[[NDArray[np.float32]], BatchLogits],
    manifest: Manifest,
    plan: WindowPlan,
    batch: int,
    *,
    smaller_batch: bool,
    ahead: bool,
    network_time: Callable[[], AbstractContextManager[None]],
) -> Iterator[_WindowLogits]:
    """The network's logits of every window, in the plan's order."""
    flips = mirrorings(manifest.mirror_axes)
    wanted = list(product(_corners(plan), flips))

    def run(first: int, batch: int) -> BatchLogits:
        now = wanted[first : first + batch]
        windows = np.empty((batch, 1, *manifest.window), dtype=np.float32)
        for window, (corner, flip) in zip(windows, now + now[-1:] * (batch - len(now)), strict=True):
            window[0] = np.flip(image[_box(corner, manifest.window)], flip)
        return run_network(windows)

    with _NetworkRuns(run, ahead=ahead) as runs:
        done = 0
        while done < len(wanted):
            try:
                with network_time():
                    result = runs.take(done, batch)
            except (OutOfMemory, GpuOutOfMemory):
                if batch == 1 or not smaller_batch:
                    raise
                batch //= 2
                logger.warning("a batch of %d windows does not fit into memory: %d from now on", batch * 2, batch)
                continue
            expected = (batch, len(manifest.labels), *manifest.window)
            if result.shape != expected:
                raise ModelInvalid(f"the model's network gives logits of shape {result.shape}, expected {expected}")
            now = wanted[done : done + batch]
            done += len(now)
            if done < len(wanted):
                runs.prepare(done, batch)
            for number, (_, flip) in enumerate(now):
                yield _WindowLogits(result, number, flip)
            # The next run's are made while nobody holds these.
            del result


class _NetworkRuns:
    """Runs of a network, the next one in a thread of its own where it is to run ahead."""

    def __init__(self, run: Callable[[int, int], BatchLogits], *, ahead: bool) -> None:
        self._run = run
        self._pool = ThreadPoolExecutor(1, "network") if ahead else None
        self._next: Future[BatchLogits] | None = None

    def prepare(self, first: int, batch: int) -> None:
        """Starts a run that is going to be taken."""
        if self._pool is not None:
            self._next = self._pool.submit(self._run, first, batch)

    def take(self, first: int, batch: int) -> BatchLogits:
        """What a run gives: the one that was prepared, or one that runs now."""
        prepared, self._next = self._next, None
        return self._run(first, batch) if prepared is None else prepared.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """The ways of flipping some axes, none first: every combination of them, as nnU-Net's test-time augmentation.

    >>> mirrorings((0, 2))
    [(), (0,), (2,), (0, 2)]
    """
    return [flip for count in range(len(axes) + 1) for flip in combinations(axes, count)]


def _corners(plan: WindowPlan) -> list[Corner]:
    """The first voxel of each window, those that lie first along the plan's axis first."""
    ordered = product(*(plan.starts[axis] for axis in plan.axes))
    places = [plan.axes.index(axis) for axis in range(3)]
    return [tuple(corner[place] for place in places) for corner in ordered]


def _box(corner: Corner, window: Shape) -> tuple[slice, slice, slice]:
    i, j, k = (slice(start, start + size) for start, size in zip(corner, window, strict=True))
    return i, j, k


def _aggregate(
    windows: Iterator[_WindowLogits],
    shape: tuple[int, ...],
    manifest: Manifest,
    plan: WindowPlan,
    on_device: DeviceNetwork | None,
    threads: ThreadPool,
    allocate: Allocate,
    on_window: Callable[[int], None],
) -> Iterator[NDArray[np.float32]]:
    """Adds windows up, and yields the planes (labels, h, w) that no later one touches."""
    axis, depth = plan.stream_axis, manifest.window[plan.stream_axis]
    weights = importance_map(manifest.window, manifest.blending)
    times = len(mirrorings(manifest.mirror_axes))
    held = (len(manifest.labels), *(depth if each == axis else size for each, size in enumerate(shape)))

    def on_host(so_far: NDArray[np.float32] | None = None) -> Aggregator:
        sums = allocate(held)
        if so_far is not None:
            sums += so_far
        return HostAggregator(sums, axis, weights, threads)

    # After the first run, when what the network takes for itself is taken.
    first = next(windows)
    aggregator = (
        FallbackAggregator(partial(on_device.aggregator, held, axis, weights), on_host) if on_device else on_host()
    )
    windows = chain([first], windows)
    del first
    corners = _corners(plan)
    for done, (corner, after) in enumerate(pairwise([*corners, shape]), start=1):
        place = tuple(0 if each == axis else start for each, start in enumerate(corner))
        for window in islice(windows, times):
            aggregator.add(*window, place)
            del window
        on_window(done)
        yield from _finished_planes(
            aggregator, range(corner[axis], after[axis]), plan, times * np.moveaxis(weights, axis, 0), held
        )


def _finished_planes(
    aggregator: Aggregator, leaving: range, plan: WindowPlan, weights: NDArray[np.float32], held: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    """Yields the first planes of those held, divided by their total weight, and moves up the rest.

    Args:
        aggregator: What is held.
        leaving: Which planes of the volume go.
        plan: Where the windows lie.
        weights: A window's, shape (depth, h, w).
        held: Shape of the sums, (labels, i, j, k).
    """
    labels, height, width = held[0], *(held[axis + 1] for axis in plan.axes[1:])
    step = max(1, min(_PLANES_AT_A_TIME, _LEAVING_BYTES // (4 * labels * height * width)))
    for start in range(0, len(leaving), step):
        now = slice(start, min(start + step, len(leaving)))
        total = np.zeros((now.stop - now.start, height, width), dtype=np.float32)
        for plane, index in zip(total, leaving[now], strict=True):
            _add_weights(plane, index, plan, weights)
        yield from aggregator.means(now, total)
    if leaving:
        aggregator.move_up(len(leaving))


def _add_weights(plane: NDArray[np.float32], index: int, plan: WindowPlan, weights: NDArray[np.float32]) -> None:
    """Adds the weights of all windows that a plane (h, w) of the volume lies in."""
    depth, height, width = weights.shape
    deep, high, wide = (plan.starts[axis] for axis in plan.axes)
    for start in deep:
        if start <= index < start + depth:
            for top, left in product(high, wide):
                plane[top : top + height, left : left + width] += weights[index - start]
