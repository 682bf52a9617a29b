"""Where the logits of overlapping windows are added up: in the worker's memory, or on the device that computes them.

Both hold those of one window's depth, shape (labels, i, j, k), and give up the planes that no later window touches.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import GpuOutOfMemory, ModelInvalid, OutOfMemory
from inference_service.core.threads import ThreadPool

logger = logging.getLogger(__name__)

Corner = tuple[int, ...]
T = TypeVar("T")


class BatchLogits(Protocol):
    """What the network gives for a batch of windows, wherever it lies."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, labels, *window)."""

    def to_host(self) -> NDArray[np.float32]:
        """The same in the worker's memory: whoever adds a window up may change it there."""


class Aggregator(Protocol):
    """Weighted logits of one window's depth."""

    def add(self, result: BatchLogits, number: int, flip: Sequence[int], corner: Corner) -> None:
        """Adds one window.

        Args:
            result: Of the batch that the window is in.
            number: Which of them.
            flip: Axes of the window that were mirrored, and are mirrored back.
            corner: Its first voxel in what is held.

        Raises:
            OutOfMemory, GpuOutOfMemory: There is no memory to add it; what is held stays as it was.
        """

    def means(self, planes: slice, total: NDArray[np.float32]) -> NDArray[np.float32]:
        """Divides planes by the weights that were added up there.

        Args:
            planes: Which of those held, counted along the axis that planes leave along.
            total: Shape (planes, h, w).

        Returns:
            Shape (planes, labels, h, w).

        Raises:
            ModelInvalid: They are not finite.
        """

    def move_up(self, count: int) -> None:
        """Drops the first planes; zeros come in at the end."""


class TransferableAggregator(Aggregator, Protocol):
    """Sums that are not in the worker's memory."""

    def to_host(self) -> NDArray[np.float32]:
        """What is held, in the worker's memory."""


class FallbackAggregator:
    """Sums on a device until it has no memory for them, and in the worker's memory from then on.

    Args:
        on_device: Makes those on the device.
        on_host: Makes those in the worker's memory, of what was added up so far.
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
        except (OutOfMemory, GpuOutOfMemory) as error:
            self._warn(error)
            self._host = on_host(None)

    def add(self, result: BatchLogits, number: int, flip: Sequence[int], corner: Corner) -> None:
        """See `Aggregator`."""
        self._do(lambda aggregator: aggregator.add(result, number, flip, corner))

    def means(self, planes: slice, total: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Aggregator`."""
        return self._do(lambda aggregator: aggregator.means(planes, total))

    def move_up(self, count: int) -> None:
        """See `Aggregator`."""
        self._do(lambda aggregator: aggregator.move_up(count))

    def _do(self, step: Callable[[Aggregator], T]) -> T:
        if self._device is not None:
            try:
                return step(self._device)
            except (OutOfMemory, GpuOutOfMemory) as error:
                self._warn(error)
            self._host, self._device = self._on_host(self._device.to_host()), None
        return step(self._host)

    @staticmethod
    def _warn(error: OutOfMemory | GpuOutOfMemory) -> None:
        logger.warning("logits are added up in the worker's memory, not where the network runs: %s", error)


class HostLogits:
    """A batch of logits in the worker's memory."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits = logits

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, labels, *window)."""
        return self._logits.shape

    def to_host(self) -> NDArray[np.float32]:
        """The array itself."""
        return self._logits


class HostAggregator:
    """Sums in the worker's memory.

    Args:
        held: Zeros, or what was added up so far: shape (labels, i, j, k), changed in place.
        axis: The axis that planes leave along.
        weights: Of a window, shape (*window).
        threads: Share the work.
    """

    def __init__(self, held: NDArray[np.float32], axis: int, weights: NDArray[np.float32], threads: ThreadPool) -> None:
        self._held, self._weights, self._threads = held, weights, threads
        self._planes = np.moveaxis(held, axis + 1, 1)

    def add(self, result: BatchLogits, number: int, flip: Sequence[int], corner: Corner) -> None:
        """See `Aggregator`; a row at a time stays in the cache."""
        logits = np.flip(result.to_host()[number], tuple(axis + 1 for axis in flip))
        box = tuple(slice(start, start + size) for start, size in zip(corner, self._weights.shape, strict=True))
        held, weights = self._held[:, *box], self._weights

        def add(part: slice) -> None:
            for row in range(part.start, part.stop):
                weighted = logits[:, row]
                weighted *= weights[row]
                held[:, row] += weighted

        self._threads.for_each_slice(len(weights), add)

    def means(self, planes: slice, total: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Aggregator`."""
        sums = self._planes[:, planes]
        labels, depth, height, width = sums.shape
        means = np.empty((depth, labels, height, width), dtype=np.float32)

        def divide(part: slice) -> None:
            # A row at a time stays in the cache, along whatever axis the planes lie.
            for row in range(part.start, part.stop):
                np.divide(sums[:, :, row], total[:, row], out=means[:, :, row].swapaxes(0, 1))
            check_finite(means[:, :, part])

        self._threads.for_each_slice(height, divide)
        return means

    def move_up(self, count: int) -> None:
        """See `Aggregator`."""

        def move_up(part: slice) -> None:
            # One label at a time, as numpy copies what it moves within an array.
            for planes in self._planes[part]:
                planes[: len(planes) - count] = planes[count:]
                planes[len(planes) - count :] = 0

        self._threads.for_each_slice(len(self._planes), move_up)


def check_finite(values: NDArray[np.float32]) -> None:
    """Makes sure that a network's logits are numbers.

    Raises:
        ModelInvalid: They are not.
    """
    if not np.isfinite(values.sum()):
        raise ModelInvalid("the model's network gives values that are not finite")
