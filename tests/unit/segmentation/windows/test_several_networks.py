"""Several networks that are averaged, such as the folds of nnU-Net."""

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from math import prod

import numpy as np
import pytest
from fake_networks import ConstantNetwork, PlaceNetwork, noise
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference_service.contract.manifest import Manifest
from inference_service.core.errors import OutOfMemory
from inference_service.imaging.geometry import Shape
from inference_service.segmentation.windows.network import SINGLE_WINDOWS, Batching, Network
from inference_service.segmentation.windows.sliding_window import NO_HOOKS, StreamHooks, stream_logits, zeros_in_memory
from inference_service.segmentation.windows.tiling import WindowPlan, importance_map, plan_windows, window_shape

MakeManifest = Callable[..., Manifest]

# Bounds the float32 rounding of a weighted mean of logits up to 8.
CLOSE = 4e-5


def plan_for(shape: Shape, manifest: Manifest) -> WindowPlan:
    return plan_windows(shape, window_shape(shape, manifest), manifest.overlap, manifest.placement)


def planes_of(
    image: NDArray[np.float32],
    networks: Sequence[Network],
    manifest: Manifest,
    batching: Batching = SINGLE_WINDOWS,
    hooks: StreamHooks = NO_HOOKS,
) -> Iterator[NDArray[np.float32]]:
    plan = plan_for(image.shape, manifest)
    return stream_logits(image[np.newaxis], networks, manifest, plan, batching=batching, hooks=hooks)


def streamed(
    image: NDArray[np.float32],
    networks: Sequence[Network],
    manifest: Manifest,
    batching: Batching = SINGLE_WINDOWS,
    hooks: StreamHooks = NO_HOOKS,
) -> NDArray[np.float32]:
    """All logits, shape (labels, i, j, k)."""
    planes = np.stack(list(planes_of(image, networks, manifest, batching, hooks)))
    return np.moveaxis(planes, 0, plan_for(image.shape, manifest).stream_axis + 1)


def dense(image: NDArray[np.float32], networks: Sequence[Network], manifest: Manifest) -> NDArray[np.float64]:
    """Reference: the mean over networks and mirrorings for each window, blended in a volume of float64."""
    plan = plan_for(image.shape, manifest)
    padded = np.pad(image, plan.pads)
    weights = importance_map(plan.window, manifest.blending).astype(np.float64)
    logits = np.zeros((3, *padded.shape))
    total = np.zeros(padded.shape)
    axes = manifest.mirror_axes
    flips = [tuple(axis + 2 for axis in flip) for count in range(len(axes) + 1) for flip in combinations(axes, count)]
    for corner in product(*plan.starts):
        i, j, k = (slice(start, start + size) for start, size in zip(corner, plan.window, strict=True))
        window = padded[np.newaxis, np.newaxis, i, j, k]
        runs = [np.flip(network.run(np.flip(window, flip)), flip)[0] for network in networks for flip in flips]
        logits[:, i, j, k] += weights * np.mean(runs, axis=0, dtype=np.float64)
        total[i, j, k] += weights
    i, j, k = (slice(before, before + size) for (before, _), size in zip(plan.pads, image.shape, strict=True))
    return np.asarray((logits / total)[:, i, j, k])


@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.sampled_from([0.0, 0.25, 0.5, 0.8]),
    st.sampled_from(["snap", "even"]),
    st.sampled_from([(), (1,), (0, 2)]),
    st.integers(2, 3),
    st.integers(1, 9),
    st.booleans(),
)
def test_logits_are_the_mean_of_all_networks(
    make_manifest: MakeManifest,
    shape: Shape,
    window: Shape,
    overlap: float,
    placement: str,
    mirror_axes: tuple[int, ...],
    count: int,
    batch: int,
    ahead: bool,
) -> None:
    manifest = make_manifest(
        window=window, overlap=overlap, placement=placement, mirror_axes=mirror_axes, values=(0, 1, 2)
    )
    networks = [PlaceNetwork(window, seed) for seed in range(count)]
    image = noise(shape)
    got = streamed(image, networks, manifest, Batching(batch, run_ahead=ahead))
    assert np.allclose(got, dense(image, networks, manifest), atol=CLOSE)


@pytest.mark.parametrize("shape", [(23, 6, 5), (6, 23, 5), (6, 5, 23)])
@pytest.mark.parametrize("batch", [1, 2])
def test_sums_are_as_deep_as_one_window_on_each_stream_axis(
    make_manifest: MakeManifest, shape: Shape, batch: int
) -> None:
    """Planes leave when all networks have run on the windows that touch them, before any runs on later ones."""
    manifest = make_manifest(window=(5, 4, 3), values=(0, 1, 2))
    plan = plan_for(shape, manifest)
    allocated: list[tuple[int, ...]] = []
    done: list[int] = []

    def allocate(extent: tuple[int, ...]) -> NDArray[np.float32]:
        allocated.append(extent)
        return zeros_in_memory(extent)

    starts = plan.starts[plan.stream_axis]
    layer = plan.count // len(starts)
    networks = [PlaceNetwork((5, 4, 3), seed) for seed in range(3)]
    hooks = StreamHooks(allocate, on_window=done.append)
    for index, _ in enumerate(planes_of(noise(shape), networks, manifest, Batching(batch), hooks)):
        assert done[-1] <= layer * sum(start <= index for start in starts)
    assert done == list(range(1, plan.count + 1))
    expected = list(shape)
    expected[plan.stream_axis] = (5, 4, 3)[plan.stream_axis]
    assert allocated == [(3, *expected)]


def test_memory_does_not_grow_with_the_volume_or_the_networks(make_manifest: MakeManifest) -> None:
    shape = (12, 600, 12)
    manifest = make_manifest(window=(12, 12, 12), values=(0, 1))
    image = noise(shape)
    peaks = []
    for count in (1, 5):
        networks = [ConstantNetwork([1.0, 2.0])] * count
        tracemalloc.start()
        for _ in planes_of(image, networks, manifest):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    whole_logits_bytes = 2 * image.nbytes
    assert peaks[0] < whole_logits_bytes / 4
    assert peaks[1] < 1.05 * peaks[0]


@pytest.mark.parametrize(
    ("shape", "window", "batch", "sizes", "depth"),
    [
        # Nine windows with one start: three runs of three, not of four.
        ((12, 8, 8), (6, 4, 4), 4, [3] * 3 * 2 * 3, 6),
        # One window a slice: a batch takes four slices.
        ((8, 6, 6), (1, 6, 6), 4, [4] * 2 * 2, 4),
        ((9, 6, 6), (1, 6, 6), 4, [4] * 3 * 2, 4),
        # One window of several slices: the sums are deeper by the steps of a batch.
        ((18, 6, 6), (6, 6, 6), 2, [2] * 3 * 2, 9),
        ((18, 6, 6), (6, 6, 6), 1, [1] * 5 * 2, 6),
    ],
)
def test_batches_are_full(
    make_manifest: MakeManifest, shape: Shape, window: Shape, batch: int, sizes: list[int], depth: int
) -> None:
    seen: list[int] = []
    allocated: list[tuple[int, ...]] = []

    class Batches(PlaceNetwork):
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            seen.append(len(windows))
            return super().run(windows)

    def allocate(extent: tuple[int, ...]) -> NDArray[np.float32]:
        allocated.append(extent)
        return zeros_in_memory(extent)

    manifest = make_manifest(window=window, values=(0, 1, 2))
    networks = [Batches(window, 1), Batches(window, 2)]
    image = noise(shape)
    got = streamed(image, networks, manifest, Batching(batch), StreamHooks(allocate))
    assert seen == sizes
    assert allocated == [(3, depth, *shape[1:])]
    assert np.allclose(got, dense(image, networks, manifest), atol=CLOSE)


def test_a_batch_dimension_that_is_fixed_is_kept(make_manifest: MakeManifest) -> None:
    class Fixed(PlaceNetwork):
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            assert len(windows) == 4
            return super().run(windows)

    manifest = make_manifest(window=(6, 4, 4), values=(0, 1, 2))
    networks = [Fixed((6, 4, 4), seed) for seed in (1, 2)]
    image = noise((12, 8, 8))
    plain = [PlaceNetwork((6, 4, 4), seed) for seed in (1, 2)]
    got = streamed(image, networks, manifest, Batching(4, may_shrink=False))
    assert np.allclose(got, dense(image, plain, manifest), atol=CLOSE)


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_of_any_network_that_do_not_fit_into_memory_are_halved(
    make_manifest: MakeManifest, caplog: pytest.LogCaptureFixture, ahead: bool
) -> None:
    class Small(PlaceNetwork):
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            if len(windows) > 2:
                raise OutOfMemory("too large")
            return super().run(windows)

    window = (4, 4, 4)
    manifest = make_manifest(window=window, values=(0, 1, 2))
    image = noise((11, 8, 8))
    got = streamed(image, [PlaceNetwork(window, 1), Small(window, 2)], manifest, Batching(8, run_ahead=ahead))
    expected = dense(image, [PlaceNetwork(window, 1), PlaceNetwork(window, 2)], manifest)
    assert np.allclose(got, expected, atol=CLOSE)
    assert caplog.text.count("does not fit into memory") >= 1


def test_each_window_is_counted_once(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(window=(4, 4, 4), mirror_axes=(0, 1), values=(0, 1, 2))
    counts: list[int] = []
    networks = [PlaceNetwork((4, 4, 4), seed) for seed in range(3)]
    streamed(noise((9, 6, 5)), networks, manifest, hooks=StreamHooks(on_window=counts.append))
    assert counts == list(range(1, plan_for((9, 6, 5), manifest).count + 1))
    assert counts[-1] == prod(len(starts) for starts in plan_for((9, 6, 5), manifest).starts)
