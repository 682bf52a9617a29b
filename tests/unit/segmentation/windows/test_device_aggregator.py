"""Aggregation on a device, for which the CPU provider stands in, with the same graphs and bindings."""

import gc
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper, parser

from inference_service.contract.manifest import Manifest
from inference_service.contract.result_files import MASK_FILE
from inference_service.core.errors import GpuOutOfMemory, ModelInvalid
from inference_service.core.execution import CPU, CUDA, TENSORRT, ExecutionOptions, GpuOptions
from inference_service.embedded.phantom import chest_phantom
from inference_service.engine.model_registry import Model
from inference_service.engine.onnx_file import NetworkContent
from inference_service.engine.session import Session
from inference_service.engine.session_cache import SessionCache
from inference_service.formats.nifti import write_volume
from inference_service.formats.read_limits import ReadLimits
from inference_service.imaging.geometry import Shape
from inference_service.segmentation.pipeline import ModelRun, segment_file
from inference_service.segmentation.resources import StageMonitor
from inference_service.segmentation.windows.device_aggregator import GRAPHS, TEXTS, DeviceAggregator, DeviceSession
from inference_service.segmentation.windows.network import SINGLE_WINDOWS, Batching, Network
from inference_service.segmentation.windows.sliding_window import stream_logits
from inference_service.segmentation.windows.tiling import plan_windows, window_shape

MakeManifest = Callable[..., Manifest]

LABELS = (0, 1, 2)
HALF_RTOL = 2e-3


@cache
def session_of(kind: int = TensorProto.FLOAT, value: float = 1.0) -> Session:
    """A convolution, whose logits depend on a voxel's place in its window."""
    weights = value * np.random.default_rng(3).normal(size=(len(LABELS), 1, 3, 3, 3))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3] * 3, pads=[1] * 6)],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 1, "i", "j", "k"])],
        [helper.make_tensor_value_info("y", kind, ["n", len(LABELS), "i", "j", "k"])],
        [numpy_helper.from_array(weights.astype(helper.tensor_dtype_to_np_dtype(kind)), "w")],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Session(NetworkContent(network.SerializeToString()), providers=[CPU], threads=1)


def noise(shape: Shape) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def streamed(
    shape: Shape, manifest: Manifest, *networks: Network | DeviceSession, batching: Batching = SINGLE_WINDOWS
) -> NDArray[np.float32]:
    plan = plan_windows(shape, window_shape(shape, manifest), manifest.overlap, manifest.placement)
    return np.stack(list(stream_logits(noise(shape)[np.newaxis], networks, manifest, plan, batching=batching)))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_graphs_are_compiled_from_their_texts(name: str) -> None:
    text = TEXTS[name.removesuffix(" half")].replace("LOGITS", "float16" if name.endswith(" half") else "float")
    model = parser.parse_model(text)
    checker.check_model(model, full_check=True)
    assert model.SerializeToString(deterministic=True) == GRAPHS[name]
    assert set(TEXTS) <= set(GRAPHS)


@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.sampled_from([0.0, 0.5, 0.8]),
    st.sampled_from([(), (1,), (0, 2), (0, 1, 2)]),
    st.integers(1, 4),
    st.booleans(),
)
def test_device_aggregation_agrees_with_the_hosts(
    make_manifest: MakeManifest,
    shape: Shape,
    window: Shape,
    overlap: float,
    mirror_axes: tuple[int, ...],
    batch: int,
    ahead: bool,
) -> None:
    session = session_of()
    manifest = make_manifest(window=window, overlap=overlap, values=LABELS, mirror_axes=mirror_axes)
    here = streamed(shape, manifest, session)
    there = streamed(shape, manifest, DeviceSession(session), batching=Batching(batch, run_ahead=ahead))
    np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-5)


@given(st.tuples(*[st.integers(1, 9)] * 3), st.sampled_from([(), (0, 2)]), st.integers(1, 9), st.booleans())
def test_several_networks_are_averaged_on_the_device(
    make_manifest: MakeManifest, shape: Shape, mirror_axes: tuple[int, ...], batch: int, ahead: bool
) -> None:
    sessions = [session_of(value=value) for value in (1.0, -3.0, 0.5)]
    manifest = make_manifest(window=(4, 2, 3), values=LABELS, mirror_axes=mirror_axes)
    here = streamed(shape, manifest, *sessions)
    batching = Batching(batch, run_ahead=ahead)
    there = streamed(shape, manifest, *map(DeviceSession, sessions), batching=batching)
    np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-5)
    assert not np.allclose(there, streamed(shape, manifest, sessions[0]), atol=1e-3)


def test_float16_logits_are_aggregated_in_float32(make_manifest: MakeManifest) -> None:
    half = session_of(TensorProto.FLOAT16)
    full = session_of()
    manifest = make_manifest(window=(4, 5, 3), values=LABELS, mirror_axes=(1,))
    there = streamed((9, 6, 8), manifest, DeviceSession(half), batching=Batching(2))
    assert there.dtype == np.float32
    np.testing.assert_allclose(there, streamed((9, 6, 8), manifest, half), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(there, streamed((9, 6, 8), manifest, full), rtol=HALF_RTOL, atol=20 * HALF_RTOL)


@pytest.mark.parametrize("steps", range(0, 24))
def test_aggregation_moves_to_the_host_where_the_device_runs_out_of_memory(
    make_manifest: MakeManifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, steps: int
) -> None:
    """The sums so far are kept, regardless of the step that runs out of memory."""
    left = steps
    run = Session.run_graph
    empty = Session.empty_on_device

    def full() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("Error in execution: CUDA failure 2: out of memory ; GPU=0")

    def run_until_full(self: Session, *given: Any, **into: Any) -> object:
        with self._mapping_errors():
            full()
        return run(self, *given, **into)

    def empty_until_full(self: Session, shape: Shape) -> object:
        with self._mapping_errors():
            full()
        return empty(self, shape)

    session = session_of()
    manifest = make_manifest(window=(4, 3, 3), values=LABELS, overlap=0.25)
    expected = streamed((11, 6, 5), manifest, session)
    monkeypatch.setattr(Session, "run_graph", run_until_full)
    monkeypatch.setattr(Session, "empty_on_device", empty_until_full)
    there = streamed((11, 6, 5), manifest, DeviceSession(session))
    np.testing.assert_allclose(there, expected, rtol=1e-5, atol=1e-5)
    warning = "logits are aggregated in the worker's memory instead of the network's device"
    assert caplog.text.count(warning) == (left < 0)
    assert left < 0 or steps > 20


def test_sums_that_gpu_kernels_cannot_index_are_refused() -> None:
    with pytest.raises(GpuOutOfMemory, match="more than a GPU's kernels count"):
        DeviceAggregator(session_of(), (118, 96, 512, 512), 0, np.ones((1, 1, 1), np.float32))


def test_logits_do_not_keep_the_inputs_of_their_run_alive() -> None:
    session = session_of()
    windows = np.ones((1, 1, 8, 8, 8), np.float32)
    kept = weakref.ref(windows)
    result = session.run_on_device(windows)
    del windows
    gc.collect()
    assert kept() is None
    assert result.shape() == [1, len(LABELS), 8, 8, 8]


def test_non_finite_logits_are_an_invalid_model(make_manifest: MakeManifest) -> None:
    session = session_of(value=float("nan"))
    with pytest.raises(ModelInvalid, match="not finite"):
        streamed((9, 6, 8), make_manifest(window=(4, 5, 3), values=LABELS), DeviceSession(session))


def test_a_window_that_does_not_fit_into_the_gpus_memory_is_out_of_memory(
    make_manifest: MakeManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Session, windows: NDArray[np.float32]) -> None:
        raise GpuOutOfMemory("too large")

    monkeypatch.setattr(Session, "run_on_device", full)
    session = session_of()
    with pytest.raises(GpuOutOfMemory, match="too large"):
        streamed(
            (9, 6, 8), make_manifest(window=(4, 5, 3), values=LABELS), DeviceSession(session), batching=Batching(4)
        )


@pytest.mark.parametrize(("provider", "expected"), [(CUDA, True), (TENSORRT, False), (CPU, False)])
def test_cuda_aggregates_on_the_device_if_the_settings_enable_it(
    monkeypatch: pytest.MonkeyPatch, provider: str, expected: bool
) -> None:
    for wanted in (False, True):
        session = Session(NetworkContent(GRAPHS["means"]), providers=[CPU], gpu=GpuOptions(aggregate_on_device=wanted))
        monkeypatch.setattr(session, "_providers", [provider])
        assert session.aggregates_on_device == (wanted and expected)


def test_a_job_gives_the_same_mask_on_device_and_host(
    make_model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = tmp_path / "scan.nii.gz"
    write_volume(scan, chest_phantom((24, 20, 12), (17.0, 20.0, 25.0)))
    model = make_model(spacing_mm=(20.0, 20.0, 20.0))
    model_run = ModelRun(model, ExecutionOptions((CPU,)), SessionCache())
    added = 0

    def add(self: DeviceAggregator, *given: Any) -> None:
        nonlocal added
        added += 1
        adding(self, *given)

    def masked(name: str) -> bytes:
        folder = tmp_path / name
        folder.mkdir()
        report = segment_file(scan, folder, model_run, limits=ReadLimits(2**20), monitor=StageMonitor())
        assert added == (report.windows if name == "device" else 0)
        return (folder / MASK_FILE).read_bytes()

    adding = DeviceAggregator.add
    monkeypatch.setattr(DeviceAggregator, "add", add)
    here = masked("host")
    monkeypatch.setattr(Session, "aggregates_on_device", True)
    assert masked("device") == here
