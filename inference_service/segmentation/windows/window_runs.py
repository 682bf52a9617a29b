"""Runs networks on every window of a volume: in batches, mirrored where the model asks for it, and run ahead."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import combinations
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.part import Part
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
        corner: The window's first voxel in the padded volume.
        following: Index along the plan's `stream_axis` before which no later window lies.
    """

    batch: BatchLogits
    number: int
    flipped_axes: tuple[int, ...]
    corner: Corner
    following: int


def run_windows(
    image: NDArray[np.float32],
    networks: Sequence[RunNetwork],
    part: Part,
    order: "WindowOrder",
    batching: Batching,
    network_time: NetworkTime,
) -> Iterator[WindowLogits]:
    """Runs networks on all windows of a plan.

    Args:
        image: Shape (channels, i, j, k), padded as the plan says.
        networks: Each runs on a batch of shape (batch, channels, *window).
        part: Gives the outputs.
        order: The order of the windows and the networks.
        batching: How windows are batched.
        network_time: Returns a context that is entered while a network is waited for.

    Yields:
        The logits of each window; where it is mirrored, of each mirroring in turn.

    Raises:
        OutOfMemory, GpuOutOfMemory: The smallest batch does not fit into memory.
        ModelInvalid: The logits have another shape than the manifest's.
    """

    def run_batch(batch: _Batch) -> BatchLogits:
        windows = np.empty((batch.size, len(image), *order.window), dtype=np.float32)
        for place, item in enumerate(range(batch.first, batch.first + batch.size)):
            # The last batch is filled up with its last window.
            corner, flip = order[min(item, batch.stop - 1)]
            for channel, values in zip(windows[place], image, strict=True):
                channel[...] = np.flip(values[_box(corner, order.window)], flip)
        return networks[batch.network](windows)

    size = order.batch_size(batching.size) if batching.may_shrink else batching.size
    batch: _Batch | None = order.first_batch(size)
    with _NetworkRuns(run_batch, run_ahead=batching.run_ahead) as runs:
        while batch is not None:
            try:
                with network_time():
                    logits = runs.result(batch)
            except MEMORY_ERRORS:
                if size == 1 or not batching.may_shrink:
                    raise
                size //= 2
                logger.warning("a batch of %d windows does not fit into memory: %d from now on", batch.size, size)
                batch = batch._replace(size=size)
                continue
            _check_shape(logits.shape, (size, len(part.outputs), *order.window))
            done = batch
            batch = order.next_batch(done)
            if batch is not None:
                runs.start(batch)
            for number, item in enumerate(range(done.first, done.stop)):
                corner, flip = order[item]
                yield WindowLogits(logits, number, flip, corner, order.following(done, item))
            # Released before the next run allocates its own.
            del logits


class _Batch(NamedTuple):
    """One run of a network.

    Attributes:
        network: Index of the network.
        group: Items on which all networks run before any of them runs on later ones.
        first: First item of the batch.
        size: Windows of the batch; it is filled up where the group ends earlier.
    """

    network: int
    group: range
    first: int
    size: int

    @property
    def stop(self) -> int:
        """The item after the last one."""
        return min(self.first + self.size, self.group.stop)


class WindowOrder:
    """The order in which networks run on the mirrored windows of a plan, which are its items.

    A single network runs on all of them in turn. Several networks take turns on groups of items, so that finished
    planes can leave: the windows with one start along the stream axis, or with as many as fill a batch.

    Args:
        plan: Where the windows lie.
        mirror_axes: Axes along which the windows are mirrored.
        networks: Number of networks that run on each item.
        batch_size: Upper limit of the items in one run.

    Attributes:
        window: Voxels of a window along each axis.
        runs_per_window: Runs for each window: those of each network on each mirroring.
        depth: Number of planes along the stream axis that the windows of a group may cover before any of them leaves.
    """

    def __init__(self, plan: WindowPlan, mirror_axes: Sequence[int], networks: int, batch_size: int) -> None:
        self.window = plan.window
        self._corners = plan.corners()
        self._flips = mirrorings(mirror_axes)
        self._axis = plan.stream_axis
        self._networks = networks
        self.runs_per_window = networks * len(self._flips)
        starts = plan.starts[self._axis]
        self._end = starts[-1] + plan.window[self._axis]
        self.depth = plan.window[self._axis]
        self._group = len(self)
        if networks > 1:
            layer = len(self) // len(starts)
            layers = -(-batch_size // layer)
            groups = [starts[first : first + layers] for first in range(0, len(starts), layers)]
            self.depth += max(group[-1] - group[0] for group in groups)
            self._group = layer * layers

    def __len__(self) -> int:
        return len(self._corners) * len(self._flips)

    def __getitem__(self, item: int) -> tuple[Corner, tuple[int, ...]]:
        """Corner and mirroring of an item."""
        window, flip = divmod(item, len(self._flips))
        return self._corners[window], self._flips[flip]

    def batch_size(self, most: int) -> int:
        """Returns the size of the batches, at most `most`, that divide a group into equal runs."""
        return most if self._networks == 1 else -(-self._group // -(-self._group // most))

    def first_batch(self, size: int) -> _Batch:
        """Returns the first run."""
        return _Batch(0, self._group_from(0), 0, size)

    def next_batch(self, batch: _Batch) -> _Batch | None:
        """Returns the run after another one; None after the last."""
        if batch.stop < batch.group.stop:
            return batch._replace(first=batch.stop)
        if batch.network + 1 < self._networks:
            return batch._replace(network=batch.network + 1, first=batch.group.start)
        if batch.stop == len(self):
            return None
        return _Batch(0, self._group_from(batch.stop), batch.stop, batch.size)

    def following(self, batch: _Batch, item: int) -> int:
        """Index along the stream axis before which no window lies that runs after an item of a batch."""
        if batch.network + 1 < self._networks:
            item = batch.group.start
        else:
            item += 1
        return self._end if item == len(self) else self[item][0][self._axis]

    def _group_from(self, item: int) -> range:
        return range(item, min(item + self._group, len(self)))


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of axes along which a window is mirrored, none first: nnU-Net's test-time augmentation.

    >>> mirrorings((0, 2))
    [(), (0,), (2,), (0, 2)]
    """
    return [flip for count in range(len(axes) + 1) for flip in combinations(axes, count)]


class _NetworkRuns:
    """Runs of networks on batches, the next one in a thread of its own where the networks run ahead."""

    def __init__(self, run_batch: Callable[[_Batch], BatchLogits], *, run_ahead: bool) -> None:
        self._run_batch = run_batch
        self._pool = ThreadPoolExecutor(1, "network") if run_ahead else None
        self._started: Future[BatchLogits] | None = None

    def start(self, batch: _Batch) -> None:
        """Starts the next run; does nothing where the networks do not run ahead."""
        if self._pool is not None:
            self._started = self._pool.submit(self._run_batch, batch)

    def result(self, batch: _Batch) -> BatchLogits:
        """Returns the logits of the run that was started, or of one that runs now."""
        started = self._started
        self._started = None
        return self._run_batch(batch) if started is None else started.result()

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
