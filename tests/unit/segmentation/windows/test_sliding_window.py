import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import product
from math import ceil
from threading import Condition
from typing import Literal

import numpy as np
import pytest
from fake_networks import ConstantNetwork, PlaceNetwork, ValueNetwork, noise
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference_service.contract.manifest import Manifest
from inference_service.core.errors import ModelInvalid, OutOfMemory
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.geometry import Shape
from inference_service.segmentation.windows.network import SINGLE_WINDOWS, Batching, Network
from inference_service.segmentation.windows.sliding_window import NO_HOOKS, StreamHooks, stream_logits, zeros_in_memory
from inference_service.segmentation.windows.tiling import WindowPlan, importance_map, plan_windows, window_shape

MakeManifest = Callable[..., Manifest]

SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
WINDOWS = st.tuples(*[st.integers(1, 5)] * 3)
OVERLAPS = st.sampled_from([0.0, 0.25, 0.5, 0.8])
PLACEMENTS = st.sampled_from(["snap", "even"])
BLENDINGS = st.sampled_from(["gaussian", "constant"])

# Bounds the float32 rounding of a weighted mean of logits, relative to the largest.
BLENDING_RTOL = 5e-6


def plan_for(shape: Shape, manifest: Manifest) -> WindowPlan:
    return plan_windows(shape, window_shape(shape, manifest), manifest.overlap, manifest.placement)


def planes_of(
    image: NDArray[np.float32],
    network: Network,
    manifest: Manifest,
    plan: WindowPlan,
    batching: Batching = SINGLE_WINDOWS,
    threads: ThreadPool = SINGLE_THREAD,
    hooks: StreamHooks = NO_HOOKS,
) -> Iterator[NDArray[np.float32]]:
    channels = image[np.newaxis]
    return stream_logits(channels, [network], manifest, plan, batching=batching, threads=threads, hooks=hooks)


def streamed(image: NDArray[np.float32], network: Network, manifest: Manifest) -> NDArray[np.float32]:
    """All logits, shape (labels, i, j, k)."""
    plan = plan_for(image.shape, manifest)
    planes = list(planes_of(image, network, manifest, plan))
    return np.moveaxis(np.stack(planes), 0, plan.stream_axis + 1)


def dense(image: NDArray[np.float32], network: Network, manifest: Manifest) -> NDArray[np.float64]:
    """Reference: the logits of the whole padded volume in float64, one window added after the other."""
    plan = plan_for(image.shape, manifest)
    padded = np.pad(image, plan.pads, constant_values=manifest.padding_value)
    weights = importance_map(plan.window, manifest.blending).astype(np.float64)
    logits = np.zeros((3, *padded.shape))
    total = np.zeros(padded.shape)
    for corner in product(*plan.starts):
        i, j, k = (slice(start, start + size) for start, size in zip(corner, plan.window, strict=True))
        logits[:, i, j, k] += weights * network.run(padded[np.newaxis, np.newaxis, i, j, k])[0]
        total[i, j, k] += weights
    i, j, k = (slice(before, before + size) for (before, _), size in zip(plan.pads, image.shape, strict=True))
    return np.asarray((logits / total)[:, i, j, k])


@given(SHAPES, WINDOWS, OVERLAPS, PLACEMENTS, BLENDINGS)
def test_an_identity_network_returns_the_image(
    make_manifest: MakeManifest, shape: Shape, window: Shape, overlap: float, placement: str, blending: str
) -> None:
    manifest = make_manifest(
        window=window, overlap=overlap, placement=placement, blending=blending, values=(0, 1), padding_value=99.0
    )
    image = noise(shape)
    logits = streamed(image, ValueNetwork(), manifest)
    assert np.allclose(logits, [image, -image], rtol=BLENDING_RTOL, atol=BLENDING_RTOL)


@given(SHAPES, WINDOWS, OVERLAPS, PLACEMENTS, BLENDINGS)
def test_blending_agrees_with_that_of_a_whole_volume(
    make_manifest: MakeManifest, shape: Shape, window: Shape, overlap: float, placement: str, blending: str
) -> None:
    manifest = make_manifest(
        window=window, overlap=overlap, placement=placement, blending=blending, values=(0, 1, 2), padding_value=-1.5
    )
    image = noise(shape)
    network = PlaceNetwork(window)
    assert np.allclose(streamed(image, network, manifest), dense(image, network, manifest), atol=8 * BLENDING_RTOL)


@pytest.mark.parametrize("padding", ["edge", "reflect"])
def test_small_volumes_are_padded_as_the_model_asks(
    make_manifest: MakeManifest, padding: Literal["edge", "reflect"]
) -> None:
    manifest = make_manifest(window=(6, 4, 8), padding=padding, values=(0, 1))
    image = noise((4, 9, 3))
    network = ValueNetwork()
    plan = plan_for(image.shape, manifest)
    planes = np.stack(list(planes_of(image, network, manifest, plan)))
    padded = np.pad(image, [(1, 1), (0, 0), (2, 3)], mode=padding)
    expected = [padded[:, start : start + 4] for start in plan.starts[1]]
    assert [window[0, 0].tolist() for window in network.windows] == [window.tolist() for window in expected]
    assert np.allclose(planes[:, 0], np.moveaxis(image, 1, 0), atol=BLENDING_RTOL)


def test_a_network_sees_all_channels_of_its_window(make_manifest: MakeManifest) -> None:
    image = noise((3, 9, 6))[:, np.newaxis] + np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1)
    manifest = make_manifest(window=(2, 4, 3), values=(0, 1, 2), mirror_axes=(2,))
    plan = plan_for(image.shape[1:], manifest)
    seen: list[NDArray[np.float32]] = []

    class Channels(PlaceNetwork):
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            seen.extend(windows)
            return super().run(windows)

    list(stream_logits(image, [Channels((2, 4, 3))], manifest, plan, batching=Batching(2)))
    plain = [image[:, i : i + 2, j : j + 4, k : k + 3] for i, j, k in plan.corners()]
    expected = [window for pair in ((each, np.flip(each, 3)) for each in plain) for window in pair]
    assert [window.tolist() for window in seen[: len(expected)]] == [window.tolist() for window in expected]


@pytest.mark.parametrize("shape", [(13, 7, 5), (7, 13, 5), (7, 5, 13), (2, 3, 1)])
@pytest.mark.parametrize("placement", ["snap", "even"])
@pytest.mark.parametrize("blending", ["gaussian", "constant"])
def test_constant_network_gives_constants(
    make_manifest: MakeManifest, shape: Shape, placement: str, blending: str
) -> None:
    manifest = make_manifest(placement=placement, blending=blending, values=(0, 1, 2))
    logits = streamed(noise(shape), ConstantNetwork([3.7, -250.0, 1e-3]), manifest)
    assert logits.shape == (3, *shape)
    for channel, expected in zip(logits, [3.7, -250.0, 1e-3], strict=True):
        assert channel == pytest.approx(np.float32(expected), rel=BLENDING_RTOL)


@pytest.mark.parametrize("shape", [(17, 7, 5), (7, 17, 5), (7, 5, 17), (3, 9, 2)])
def test_network_sees_the_windows_of_the_plan_in_the_models_axis_order(
    make_manifest: MakeManifest, shape: Shape
) -> None:
    manifest = make_manifest(window=(5, 4, 3), values=(0, 1), padding_value=-7.0)
    plan = plan_for(shape, manifest)
    image = np.asfortranarray(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    network = ValueNetwork()
    list(planes_of(image, network, manifest, plan))
    assert len(network.windows) == plan.count
    for window in network.windows:
        assert window.shape == (1, 1, 5, 4, 3)
        assert window.dtype == np.float32
        assert window.flags.c_contiguous
    padded = np.pad(image, plan.pads, constant_values=-7.0)
    expected = [padded[i : i + 5, j : j + 4, k : k + 3] for i, j, k in product(*plan.starts)]
    assert {window.tobytes() for window in network.windows} == {window.tobytes() for window in expected}


def test_windows_are_counted(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(values=(0, 1))
    plan = plan_for((11, 6, 5), manifest)
    counts: list[int] = []
    list(planes_of(noise((11, 6, 5)), ValueNetwork(), manifest, plan, hooks=StreamHooks(on_window=counts.append)))
    assert counts == list(range(1, plan.count + 1))
    assert plan.count > 10


def test_an_exception_from_on_window_ends_the_run(make_manifest: MakeManifest) -> None:
    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        if done == 3:
            raise Stop

    manifest = make_manifest(values=(0, 1))
    network = ValueNetwork()
    plan = plan_for((11, 6, 5), manifest)
    with pytest.raises(Stop):
        list(planes_of(noise((11, 6, 5)), network, manifest, plan, hooks=StreamHooks(on_window=stop)))
    assert len(network.windows) == 3


@pytest.mark.parametrize("shape", [(23, 6, 5), (6, 23, 5), (6, 5, 23), (4, 3, 2)])
@pytest.mark.parametrize("placement", ["snap", "even"])
def test_planes_are_yielded_before_windows_that_do_not_touch_them_run(
    make_manifest: MakeManifest, shape: Shape, placement: str
) -> None:
    manifest = make_manifest(placement=placement, values=(0, 1))
    plan = plan_for(shape, manifest)
    network = ValueNetwork()
    deep = plan.starts[plan.stream_axis]
    for index, _ in enumerate(planes_of(noise(shape), network, manifest, plan)):
        touching = sum(start <= index + plan.pads[plan.stream_axis][0] for start in deep)
        assert len(network.windows) == touching * plan.count // len(deep)


@given(SHAPES, WINDOWS, OVERLAPS, PLACEMENTS, st.integers(1, 7))
def test_batches_have_one_size_and_give_the_logits_of_single_windows(
    make_manifest: MakeManifest, shape: Shape, window: Shape, overlap: float, placement: str, batch: int
) -> None:
    manifest = make_manifest(window=window, overlap=overlap, placement=placement, values=(0, 1, 2))
    plan = plan_for(shape, manifest)
    sizes: list[int] = []

    class Batches(PlaceNetwork):
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            sizes.append(len(windows))
            return super().run(windows)

    image = noise(shape)
    planes = np.stack(list(planes_of(image, Batches(window), manifest, plan, batching=Batching(batch))))
    assert np.array_equal(planes, np.stack(list(planes_of(image, PlaceNetwork(window), manifest, plan))))
    assert sizes == [batch] * ceil(plan.count / batch)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_network_that_runs_ahead_gives_the_same_logits(make_manifest: MakeManifest, batch: int) -> None:
    """While the logits of one run are aggregated, exactly one further run has started."""
    manifest = make_manifest(window=(4, 4, 4), values=(0, 1, 2))
    image = noise((11, 6, 5))
    plan = plan_for((11, 6, 5), manifest)
    runs = ceil(plan.count / batch)
    changed = Condition()
    started = 0

    class Ahead(PlaceNetwork):
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal started
            with changed:
                started += 1
                changed.notify()
            return super().run(windows)

    def see_the_next_one(done: int) -> None:
        expected = min((done - 1) // batch + 2, runs)
        with changed:
            assert changed.wait_for(lambda: started >= expected, timeout=30)
            assert started == expected

    batching = Batching(batch, run_ahead=True)
    hooks = StreamHooks(on_window=see_the_next_one)
    planes = planes_of(image, Ahead((4, 4, 4)), manifest, plan, batching=batching, hooks=hooks)
    alone = planes_of(image, PlaceNetwork((4, 4, 4)), manifest, plan)
    assert np.array_equal(np.stack(list(planes)), np.stack(list(alone)))
    assert started == runs


def test_the_end_of_the_run_waits_for_the_network_that_runs_ahead(make_manifest: MakeManifest) -> None:
    running = 0

    class Slow(PlaceNetwork):
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal running
            running += 1
            time.sleep(0.05)
            running -= 1
            return super().run(windows)

    def stop(done: int) -> None:
        raise KeyError(done)

    manifest = make_manifest(window=(4, 4, 4), values=(0, 1, 2))
    plan = plan_for((11, 6, 5), manifest)
    batching = Batching(run_ahead=True)
    hooks = StreamHooks(on_window=stop)
    with pytest.raises(KeyError):
        list(planes_of(noise((11, 6, 5)), Slow((4, 4, 4)), manifest, plan, batching=batching, hooks=hooks))
    assert running == 0


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_that_do_not_fit_into_memory_are_halved(
    make_manifest: MakeManifest, caplog: pytest.LogCaptureFixture, ahead: bool
) -> None:
    sizes: list[int] = []

    class Small(PlaceNetwork):
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            sizes.append(len(windows))
            if len(windows) > 2:
                raise OutOfMemory("too large")
            return super().run(windows)

    manifest = make_manifest(window=(4, 4, 4), values=(0, 1, 2))
    image = noise((11, 6, 5))
    plan = plan_for((11, 6, 5), manifest)
    batching = Batching(8, run_ahead=ahead)
    planes = np.stack(list(planes_of(image, Small((4, 4, 4)), manifest, plan, batching=batching)))
    assert np.array_equal(planes, np.stack(list(planes_of(image, PlaceNetwork((4, 4, 4)), manifest, plan))))
    assert sizes == [8, 4] + [2] * ceil(plan.count / 2)
    assert "a batch of 4 windows does not fit into memory: 2 from now on" in caplog.text


def test_a_fixed_batch_that_does_not_fit_into_memory_is_out_of_memory(make_manifest: MakeManifest) -> None:
    class Fixed:
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            assert len(windows) == 4
            raise OutOfMemory("too large")

    manifest = make_manifest(values=(0, 1))
    plan = plan_for((6, 5, 4), manifest)
    with pytest.raises(OutOfMemory, match="too large"):
        list(planes_of(noise((6, 5, 4)), Fixed(), manifest, plan, batching=Batching(4, may_shrink=False)))


@pytest.mark.parametrize("wrong", [(1, 2, 5, 4, 3), (3, 2, 5, 4, 3), (2, 1, 5, 4, 3), (2, 2, 5, 4, 4)])
def test_a_network_with_another_output_shape_is_an_invalid_model(
    make_manifest: MakeManifest, wrong: tuple[int, ...]
) -> None:
    class Wrong:
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.zeros(wrong, dtype=np.float32)

    manifest = make_manifest(values=(0, 1))
    with pytest.raises(ModelInvalid, match="of shape"):
        list(planes_of(noise((9, 6, 5)), Wrong(), manifest, plan_for((9, 6, 5), manifest), batching=Batching(2)))


def test_a_single_window_that_does_not_fit_into_memory_is_out_of_memory(make_manifest: MakeManifest) -> None:
    class Full:
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            raise OutOfMemory("too large")

    manifest = make_manifest(values=(0, 1))
    with pytest.raises(OutOfMemory, match="too large"):
        list(planes_of(noise((6, 5, 4)), Full(), manifest, plan_for((6, 5, 4), manifest), batching=Batching(4)))


@pytest.mark.parametrize("place", [(0, 0, 0, 0, 0), (0, 1, 4, 2, 1)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_are_an_invalid_model(
    make_manifest: MakeManifest, place: tuple[int, ...], value: float
) -> None:
    class Broken(ConstantNetwork):
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            logits = super().run(windows)
            logits[place] = value
            return logits

    manifest = make_manifest(values=(0, 1))
    with pytest.raises(ModelInvalid, match="not finite"):
        list(planes_of(noise((9, 6, 5)), Broken([1, 2]), manifest, plan_for((9, 6, 5), manifest)))


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("batch", [1, 3])
def test_mirrored_windows_are_averaged(make_manifest: MakeManifest, axes: tuple[int, ...], batch: int) -> None:
    class Mirrored:
        """Reference: runs each window in every mirroring, flips the logits back, and averages them."""

        def __init__(self, network: Network) -> None:
            self.network = network

        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            flips = [tuple(axis + 2 for axis in axes if chosen >> axis & 1) for chosen in range(8)]
            each = {flip: np.flip(self.network.run(np.flip(windows, flip)), flip) for flip in flips}
            assert len(each) == 2 ** len(axes)
            return np.asarray(np.mean(list(each.values()), axis=0), dtype=np.float32)

    shape = (9, 6, 5)
    window = (4, 5, 3)
    image = noise(shape)
    network = PlaceNetwork(window)
    plain = make_manifest(window=window, values=(0, 1, 2))
    mirrored = make_manifest(window=window, values=(0, 1, 2), mirror_axes=axes)
    plan = plan_for(shape, plain)
    expected = np.stack(list(planes_of(image, Mirrored(network), plain, plan)))
    counts: list[int] = []
    hooks = StreamHooks(on_window=counts.append)
    got = np.stack(list(planes_of(image, network, mirrored, plan, batching=Batching(batch), hooks=hooks)))
    assert np.allclose(got, expected, atol=8 * BLENDING_RTOL)
    assert not np.allclose(got, np.stack(list(planes_of(image, network, plain, plan))), atol=0.1)
    assert counts == list(range(1, plan.count + 1))


@pytest.mark.parametrize("shape", [(23, 6, 5), (6, 23, 5), (6, 5, 23)])
def test_threads_do_not_change_the_logits(make_manifest: MakeManifest, shape: Shape) -> None:
    manifest = make_manifest(values=(0, 1, 2))
    image = noise(shape)
    network = PlaceNetwork((5, 4, 3))
    plan = plan_for(shape, manifest)
    alone = np.stack(list(planes_of(image, network, manifest, plan)))
    with ThreadPool(3) as threads:
        assert np.array_equal(np.stack(list(planes_of(image, network, manifest, plan, threads=threads))), alone)


@pytest.mark.parametrize("shape", [(23, 6, 5), (6, 23, 5), (6, 5, 23), (2, 1, 3)])
def test_sums_are_allocated_by_the_caller_after_the_first_run(make_manifest: MakeManifest, shape: Shape) -> None:
    manifest = make_manifest(window=(5, 4, 3), values=(0, 1, 2))
    plan = plan_for(shape, manifest)
    network = ValueNetwork()
    held: list[tuple[tuple[int, ...], int]] = []

    def allocate(extent: tuple[int, ...]) -> NDArray[np.float32]:
        held.append((extent, len(network.windows)))
        return zeros_in_memory(extent)

    two_labels = make_manifest(window=(5, 4, 3), values=(0, 1))
    list(planes_of(noise(shape), network, two_labels, plan, hooks=StreamHooks(allocate)))
    expected = [max(size, extent) for size, extent in zip(shape, (5, 4, 3), strict=True)]
    expected[plan.stream_axis] = (5, 4, 3)[plan.stream_axis]
    assert held == [((2, *expected), 1)]


def test_memory_does_not_grow_with_the_volume(make_manifest: MakeManifest) -> None:
    shape = (12, 600, 12)
    manifest = make_manifest(window=(12, 12, 12), values=(0, 1))
    image = noise(shape)
    network = ConstantNetwork([1.0, 2.0])
    plan = plan_for(shape, manifest)
    tracemalloc.start()
    for _ in planes_of(image, network, manifest, plan):
        pass
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole_logits_bytes = 2 * image.nbytes
    assert peak_bytes < whole_logits_bytes / 4
