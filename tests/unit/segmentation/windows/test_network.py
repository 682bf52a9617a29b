"""Networks for planes, and networks that give probabilities."""

import numpy as np
import pytest
from fake_networks import PlaceNetwork, noise
from numpy.typing import NDArray

from inference_service.segmentation.windows.aggregator import HostLogits, TransferableAggregator
from inference_service.segmentation.windows.network import ActivatedNetwork, PlaneNetwork


class PlanePlaces(PlaceNetwork):
    """Takes windows of shape (batch, channels, h, w)."""

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        assert windows.ndim == 4
        return super().run(windows)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_network_for_planes_gets_windows_without_their_axis_of_one_voxel(axis: int) -> None:
    sides = (4, 5)
    window = [*sides[:axis], 1, *sides[axis:]]
    windows = np.random.default_rng(0).normal(size=(2, 2, *window)).astype(np.float32)
    logits = PlaneNetwork(PlanePlaces(sides), axis).run(windows)
    assert logits.shape == (2, 3, *window)
    assert np.array_equal(logits.reshape(2, 3, *sides), PlanePlaces(sides).run(windows.reshape(2, 2, *sides)))


class OnDevice:
    """A network whose logits seem to stay on a device."""

    def __init__(self, network: PlaceNetwork) -> None:
        self.network = network

    def run(self, windows: NDArray[np.float32]) -> HostLogits:
        return HostLogits(self.network.run(windows))

    def aggregator(self, shape: tuple[int, ...], axis: int, weights: NDArray[np.float32]) -> TransferableAggregator:
        raise NotImplementedError


def test_logits_become_probabilities_in_the_workers_memory() -> None:
    network = PlaceNetwork((4, 5, 3))
    windows = noise((4, 5, 3))[np.newaxis, np.newaxis]
    expected = network.run(windows) / 10

    def tenth(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.divide(logits, 10, out=logits)

    assert np.array_equal(ActivatedNetwork(network, tenth).run(windows), expected)
    assert np.array_equal(ActivatedNetwork(OnDevice(network), tenth).run(windows), expected)
