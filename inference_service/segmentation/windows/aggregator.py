"""Aggregators: weighted sums of the logits of overlapping windows, in the worker's memory or on the network's device.

An aggregator holds sums of shape (labels, i, j, k), of one window's depth along the axis along which finished planes
leave, and returns the weighted means of planes that no later window touches.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import MEMORY_ERRORS, GpuOutOfMemory, ModelInvalid, OutOfMemory
from inference_service.core.threads import ThreadPool
from inference_service.segmentation.windows.tiling import Corner

logger = logging.getLogger(__name__)

T = TypeVar("T")


class BatchLogits(Protocol):
    """The logits of a batch of windows, in the memory that they were computed in."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, labels, *window)."""

    def to_host(self) -> NDArray[np.float32]:
        """Returns them in the worker's memory, in an array that an aggregator may change."""


class Aggregator(Protocol):
    """Adds up the weighted logits of overlapping windows; holds one window's depth of sums at a time."""

    def add(self, batch: BatchLogits, number: int, flipped_axes: Sequence[int], corner: Corner) -> None:
        """Adds the weighted logits of one window.

        Args:
            batch: The logits of the window's batch.
            number: Number of the window in the batch, from 0.
            flipped_axes: Axes of the window (0, 1, 2) along which the window was mirrored; the logits are flipped back.
            corner: The window's first voxel in the sums.

        Raises:
            OutOfMemory, GpuOutOfMemory: There is no memory to add it; the sums stay as they were.
        """

    def means(self, planes: slice, total_weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Divides planes of the sums by the total weights of their voxels.

        Args:
            planes: Indices of the planes in the sums, along the axis along which finished planes leave.
            total_weights: Shape (planes, h, w).

        Returns:
            Blended logits, shape (planes, labels, h, w).

        Raises:
            ModelInvalid: They are not finite.
        """

    def move_up(self, count: int) -> None:
        """Drops the first planes of the sums, moves the others up and appends planes of zeros."""


class TransferableAggregator(Aggregator, Protocol):
    """An aggregator whose sums lie outside the worker's memory and can be copied to it."""

    def to_host(self) -> NDArray[np.float32]:
        """Copies the sums, shape (labels, i, j, k), to the worker's memory."""


class FallbackAggregator:
    """Aggregates on a device until it runs out of memory, and in the worker's memory from then on.

    Args:
        on_device: Makes the aggregator on the device.
        on_host: Makes the aggregator in the worker's memory from the sums so far; None: from zeros.
    """

    def __init__(
        self,
        on_device: Callable[[], TransferableAggregator],
        on_host: Callable[[NDArray[np.float32] | None], Aggregator],
    ) -> None:
        self._on_host = on_host
        self._host: Aggregator
        self._device: TransferableAggregator | None = None
        try:
            self._device = on_device()
        except MEMORY_ERRORS as error:
            self._warn(error)
            self._host = on_host(None)

    def add(self, batch: BatchLogits, number: int, flipped_axes: Sequence[int], corner: Corner) -> None:
        """See `Aggregator`."""
        self._do(lambda aggregator: aggregator.add(batch, number, flipped_axes, corner))

    def means(self, planes: slice, total_weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Aggregator`."""
        return self._do(lambda aggregator: aggregator.means(planes, total_weights))

    def move_up(self, count: int) -> None:
        """See `Aggregator`."""
        self._do(lambda aggregator: aggregator.move_up(count))

    def _do(self, step: Callable[[Aggregator], T]) -> T:
        if self._device is not None:
            try:
                return step(self._device)
            except MEMORY_ERRORS as error:
                self._warn(error)
            self._host = self._on_host(self._device.to_host())
            self._device = None
        return step(self._host)

    @staticmethod
    def _warn(error: OutOfMemory | GpuOutOfMemory) -> None:
        logger.warning("logits are aggregated in the worker's memory instead of the network's device: %s", error)


class HostLogits:
    """A batch of logits in the worker's memory."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits = logits

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, labels, *window)."""
        return self._logits.shape

    def to_host(self) -> NDArray[np.float32]:
        """Returns the array itself."""
        return self._logits


class HostAggregator:
    """An aggregator in the worker's memory.

    Args:
        sums: Zeros, or the sums so far: shape (labels, i, j, k), changed in place.
        axis: Axis of (i, j, k) along which finished planes leave.
        weights: Importance map of a window, shape (*window).
        threads: Share the work.
    """

    def __init__(self, sums: NDArray[np.float32], axis: int, weights: NDArray[np.float32], threads: ThreadPool) -> None:
        self._sums = sums
        self._weights = weights
        self._threads = threads
        self._planes = np.moveaxis(sums, axis + 1, 1)

    def add(self, batch: BatchLogits, number: int, flipped_axes: Sequence[int], corner: Corner) -> None:
        """See `Aggregator`."""
        logits = np.flip(batch.to_host()[number], tuple(axis + 1 for axis in flipped_axes))
        box = tuple(slice(start, start + size) for start, size in zip(corner, self._weights.shape, strict=True))
        sums = self._sums[:, *box]
        weights = self._weights

        def add(part: slice) -> None:
            # Row by row, so that the weighted logits stay in the cache.
            for row in range(part.start, part.stop):
                weighted = logits[:, row]
                weighted *= weights[row]
                sums[:, row] += weighted

        self._threads.for_each_slice(len(weights), add)

    def means(self, planes: slice, total_weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Aggregator`."""
        sums = self._planes[:, planes]
        labels, depth, height, width = sums.shape
        means = np.empty((depth, labels, height, width), dtype=np.float32)

        def divide(part: slice) -> None:
            # Row by row, which stays in the cache along whichever axis the planes lie.
            for row in range(part.start, part.stop):
                np.divide(sums[:, :, row], total_weights[:, row], out=means[:, :, row].swapaxes(0, 1))
            check_finite(means[:, :, part])

        self._threads.for_each_slice(height, divide)
        return means

    def move_up(self, count: int) -> None:
        """See `Aggregator`."""

        def move_up(part: slice) -> None:
            # Label by label, as numpy copies overlapping slices of an array before it assigns them.
            for planes in self._planes[part]:
                planes[: len(planes) - count] = planes[count:]
                planes[len(planes) - count :] = 0

        self._threads.for_each_slice(len(self._planes), move_up)


def check_finite(values: NDArray[np.float32]) -> None:
    """Checks that logits are finite.

    Raises:
        ModelInvalid: Some are not.
    """
    if not np.isfinite(values.sum()):
        raise ModelInvalid("the model's network gives values that are not finite")
