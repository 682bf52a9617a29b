"""The interface between the sliding window and a loaded network, and the batching of windows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from inference_service.segmentation.windows.aggregator import BatchLogits, TransferableAggregator


class Network(Protocol):
    """A network whose logits are returned in the worker's memory."""

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the logits of a batch of windows.

        Args:
            windows: Shape (batch, channels, *window).

        Returns:
            Shape (batch, labels, *window): a new array, which the caller may change.
        """


@runtime_checkable
class DeviceNetwork(Protocol):
    """A network whose logits stay on the device that computes them, and are aggregated there."""

    def run(self, windows: NDArray[np.float32]) -> BatchLogits:
        """Returns the logits of a batch of windows, shape (batch, channels, *window)."""

    def aggregator(self, shape: tuple[int, ...], axis: int, weights: NDArray[np.float32]) -> TransferableAggregator:
        """Returns an empty aggregator on the device.

        Args:
            shape: Shape of the sums, (labels, i, j, k).
            axis: Axis of (i, j, k) along which finished planes leave.
            weights: Importance map of a window, shape (*window).

        Raises:
            OutOfMemory, GpuOutOfMemory: The device has no memory for the sums.
        """


@dataclass(frozen=True)
class Batching:
    """How windows are batched.

    Attributes:
        size: Windows in each run of the network. The last batch is filled up to the same size.
        may_shrink: Whether the network accepts smaller batches. If so, the size is halved whenever a run does not fit
            into memory.
        run_ahead: Whether the next batch runs while the logits of the last one are aggregated. This pays where the
            network does not run on the CPU, and holds the logits of one more batch in memory.
    """

    size: int = 1
    may_shrink: bool = True
    run_ahead: bool = False


SINGLE_WINDOWS = Batching()
"""One window at a time."""


def _nothing() -> None:
    """What a network does that stays in memory."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A network that is ready to run.

    Attributes:
        network: The network.
        batching: The batches that it takes.
        load: Loads it before its part runs, if it was unloaded.
        unload: Frees its memory after its part has run.
    """

    network: Network | DeviceNetwork
    batching: Batching = SINGLE_WINDOWS
    load: Callable[[], None] = _nothing
    unload: Callable[[], None] = _nothing


class PlaneNetwork:
    """A network for planes, run on windows of one voxel along an axis.

    Args:
        network: Takes windows of shape (batch, channels, h, w).
        axis: The axis (0, 1, 2) that its windows lack.
    """

    def __init__(self, network: Network, axis: int) -> None:
        self._network = network
        self._axis = axis + 2

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Network`."""
        return np.expand_dims(self._network.run(windows.squeeze(self._axis)), self._axis)


class ActivatedNetwork:
    """A network that gives probabilities instead of logits.

    Args:
        network: Gives logits; those of a `DeviceNetwork` are copied to the worker's memory.
        activate: Turns logits of shape (batch, labels, *window) into probabilities, in place.
    """

    def __init__(
        self, network: Network | DeviceNetwork, activate: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ) -> None:
        self._network = network
        self._activate = activate

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Network`."""
        logits = self._network.run(windows)
        return self._activate(logits if isinstance(logits, np.ndarray) else logits.to_host())
