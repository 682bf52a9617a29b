"""Runs a network on every window of a volume: in batches, mirrored where the model asks for it, and run ahead."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import combinations
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.manifest import Manifest
from inference_service.core.errors import MEMORY_ERRORS, ModelInvalid
from inference_service.imaging.geometry import Box, Shape
from inference_service.segmentation.windows.aggregator import BatchLogits
from inference_service.segmentation.windows.network import Batching
from inference_service.segmentation.windows.tiling import Corner, WindowPlan

logger = logging.getLogger(__name__)

RunNetwork = Callable[[NDArray[np.float32]], BatchLogits]
NetworkTime = Callable[[], AbstractContextManager[None]]


class WindowLogits(NamedTuple):
    """The logits of one window.

    Attributes:
        batch: The logits of the window's batch.
        number: Number of the window in the batch, from 0.
        flipped_axes: Axes of the window (0, 1, 2) along which the window was mirrored.
    """

    batch: BatchLogits
    number: int
    flipped_axes: tuple[int, ...]


def run_windows(
    image: NDArray[np.float32],
    run: RunNetwork,
    manifest: Manifest,
    plan: WindowPlan,
    batching: Batching,
    network_time: NetworkTime,
) -> Iterator[WindowLogits]:
    """Runs the network on all windows, in the order of the plan.

    Args:
        image: Shape (i, j, k), padded as the plan says.
        run: Runs the network on a batch of shape (batch, 1, *window).
        manifest: Gives the window, its mirrorings and the labels.
        plan: Where the windows lie.
        batching: How windows are batched.
        network_time: Returns a context that is entered while the network is waited for.

    Yields:
        The logits of each window; where it is mirrored, of each mirroring in turn.

    Raises:
        OutOfMemory, GpuOutOfMemory: The smallest batch does not fit into memory.
        ModelInvalid: The logits have another shape than the manifest's.
    """
    corners = plan.corners()
    flips = mirrorings(manifest.mirror_axes)
    count = len(corners) * len(flips)

    def batch_members(first: int, size: int) -> list[tuple[Corner, tuple[int, ...]]]:
        numbers = range(first, min(first + size, count))
        return [(corners[number // len(flips)], flips[number % len(flips)]) for number in numbers]

    def run_batch(first: int, size: int) -> BatchLogits:
        members = batch_members(first, size)
        windows = np.empty((size, 1, *manifest.window), dtype=np.float32)
        for window, (corner, flip) in zip(windows, members + members[-1:] * (size - len(members)), strict=True):
            window[0] = np.flip(image[_box(corner, manifest.window)], flip)
        return run(windows)

    size = batching.size
    done = 0
    with _NetworkRuns(run_batch, run_ahead=batching.run_ahead) as runs:
        while done < count:
            try:
                with network_time():
                    logits = runs.result(done, size)
            except MEMORY_ERRORS:
                if size == 1 or not batching.may_shrink:
                    raise
                size //= 2
                logger.warning("a batch of %d windows does not fit into memory: %d from now on", size * 2, size)
                continue
            _check_shape(logits.shape, (size, len(manifest.labels), *manifest.window))
            members = batch_members(done, size)
            done += len(members)
            if done < count:
                runs.start(done, size)
            for number, (_, flip) in enumerate(members):
                yield WindowLogits(logits, number, flip)
            # Released before the next run allocates its own.
            del logits


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of axes along which a window is mirrored, none first: nnU-Net's test-time augmentation.

    >>> mirrorings((0, 2))
    [(), (0,), (2,), (0, 2)]
    """
    return [flip for count in range(len(axes) + 1) for flip in combinations(axes, count)]


class _NetworkRuns:
    """Runs of a network on batches, the next one in a thread of its own where the network runs ahead."""

    def __init__(self, run_batch: Callable[[int, int], BatchLogits], *, run_ahead: bool) -> None:
        self._run_batch = run_batch
        self._pool = ThreadPoolExecutor(1, "network") if run_ahead else None
        self._started: Future[BatchLogits] | None = None

    def start(self, first: int, size: int) -> None:
        """Starts the next run; does nothing where the network does not run ahead."""
        if self._pool is not None:
            self._started = self._pool.submit(self._run_batch, first, size)

    def result(self, first: int, size: int) -> BatchLogits:
        """Returns the logits of the run that was started, or of one that runs now."""
        started = self._started
        self._started = None
        return self._run_batch(first, size) if started is None else started.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _check_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ModelInvalid(f"the model's network gives logits of shape {shape}, expected {expected}")


def _box(corner: Corner, window: Shape) -> Box:
    i, j, k = (slice(start, start + size) for start, size in zip(corner, window, strict=True))
    return i, j, k
