"""Networks without weights, for tests of what surrounds a network."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.geometry import Shape


class ValueNetwork:
    """Two channels: the values and their negatives. Keeps its input windows."""

    def __init__(self) -> None:
        self.windows: list[NDArray[np.float32]] = []

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        self.windows.append(windows)
        return np.concatenate([windows, -windows], axis=1)


class ConstantNetwork:
    """The same logits everywhere."""

    def __init__(self, logits: Sequence[float]) -> None:
        self.logits = np.array(logits, dtype=np.float32).reshape(1, -1, 1, 1, 1)

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.broadcast_to(self.logits, (len(windows), self.logits.size, *windows.shape[2:])).copy()


class PlaceNetwork:
    """Logits of three labels that depend on a voxel's values and on its place in the window, without a pattern."""

    def __init__(self, window: Sequence[int], seed: int = 1) -> None:
        self.places = np.random.default_rng(seed).uniform(0.5, 5, (1, 3, *window)).astype(np.float32)

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(8 * np.sin(self.places * (windows.sum(axis=1, keepdims=True) + 2)), dtype=np.float32)


class NearestValueNetwork:
    """The logit of a label is highest where the first channel is nearest to the label's value.

    Keeps the first channel of each run's first window.
    """

    def __init__(self, *values: float) -> None:
        self.values = np.array(values, dtype=np.float32).reshape(1, -1, 1, 1, 1)
        self.images: list[NDArray[np.float32]] = []

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        self.images.append(windows[0, 0])
        return np.asarray(-np.abs(windows[:, :1] - self.values))


class ThresholdNetwork:
    """A channel for each threshold, above one half where the image exceeds it."""

    def __init__(self, *thresholds: float) -> None:
        self.thresholds = np.array(thresholds, dtype=np.float32).reshape(1, -1, 1, 1, 1)

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return windows - self.thresholds


def noise(shape: Shape) -> NDArray[np.float32]:
    """Values around 0."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
