from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from inference_service.core.errors import ConfigurationError, GpuError, GpuFailed, GpuOutOfMemory, ModelInvalid
from inference_service.core.execution import DEFAULT_GPU_OPTIONS, OPENVINO, ExecutionOptions, GpuOptions, Precision
from inference_service.core.report_warnings import WarningCode
from inference_service.engine import session_cache as session_cache_module
from inference_service.engine.model_registry import Model
from inference_service.engine.onnx_file import NetworkContent
from inference_service.engine.session import Session
from inference_service.engine.session_cache import SessionCache, load_model

MakeModel = Callable[..., Model]

CPU = ExecutionOptions(("CPUExecutionProvider",))
ON_OPENVINO = ExecutionOptions((OPENVINO, "CPUExecutionProvider"), precision="bf16")
BOTH = ("fp32", "bf16")


class FallsBackToCpu(Session):
    """A session that always falls back to the CPU."""

    message: str | None = "no reason given"

    def __init__(
        self,
        content: NetworkContent,
        *,
        output: str | None = None,
        providers: Sequence[str],
        threads: int | None = None,
        precision: Precision = "fp32",
        spin: bool = False,
        gpu: GpuOptions = DEFAULT_GPU_OPTIONS,
        read_again: Callable[[], NetworkContent] | None = None,
    ) -> None:
        super().__init__(content, providers=["CPUExecutionProvider"], threads=threads, precision=precision, spin=spin)
        self.fallback_reason = self.message


class PartlyOnOpenvino(FallsBackToCpu):
    """A session that uses every provider, none of them for the whole network."""

    @property
    def providers(self) -> list[str]:
        return [OPENVINO, "CPUExecutionProvider"]


class WhollyOnOpenvino(PartlyOnOpenvino):
    """A session whose network runs on OpenVINO as a whole."""

    message = None


@pytest.fixture
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_cache_module, "has_bfloat16", lambda: True)


def test_a_model_stays_loaded(make_model: MakeModel) -> None:
    model = make_model()
    sessions = SessionCache()
    assert sessions.load(model, CPU) is sessions.load(Model(model.manifest, model.manifest_sha256, model.folder), CPU)
    assert sessions.load(model, CPU) is not sessions.load(model, replace(CPU, threads=2))
    assert sessions.load(model, CPU) is not SessionCache().load(model, CPU)


def test_the_least_recently_used_model_is_dropped(make_model: MakeModel) -> None:
    models = [make_model(), make_model(labels=3, values=(0, 1, 2)), make_model(labels=2, values=(0, 1))]
    sessions = SessionCache(max_models=2)
    first, second = (sessions.load(model, CPU) for model in models[:2])
    sessions.load(models[0], CPU)
    sessions.load(models[2], CPU)
    assert sessions.load(models[0], CPU) is first
    assert sessions.load(models[1], CPU) is not second


def test_strict_execution_refuses_a_model_that_falls_back(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_cache_module, "Session", FallsBackToCpu)
    model = make_model()
    execution = ExecutionOptions(("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert load_model(model, execution).providers == ["CPUExecutionProvider"]
    assert "model test: the model does not run on CUDAExecutionProvider" in caplog.text
    with pytest.raises(ConfigurationError, match="does not run on CUDAExecutionProvider"):
        load_model(model, replace(execution, strict=True))


def with_second_network(model: Model) -> Model:
    """The same network twice, as folds of one model."""
    (first,) = model.manifest.networks
    content = (model.folder / first.file).read_bytes()
    (model.folder / "second.onnx").write_bytes(content)
    networks = (first, first.model_copy(update={"file": "second.onnx"}))
    return replace(model, manifest=model.manifest.model_copy(update={"networks": networks}))


def test_all_networks_of_a_model_are_loaded(make_model: MakeModel) -> None:
    loaded = load_model(with_second_network(make_model()), CPU)
    assert list(loaded.sessions) == ["model.onnx", "second.onnx"]
    assert (loaded.providers, loaded.precision, loaded.single_provider) == (["CPUExecutionProvider"], "fp32", True)
    assert loaded.warnings == []


def test_networks_of_several_parts_are_unloaded_until_they_run(make_model: MakeModel) -> None:
    model = make_model()
    assert load_model(model, CPU).sessions["model.onnx"]._loaded is not None
    parts = (model.manifest, model.manifest)
    several = replace(model, manifest=model.manifest.model_copy(update={"parts": parts, "networks": ()}))
    session = load_model(several, CPU).sessions["model.onnx"]
    assert session._loaded is None
    (model.folder / "model.onnx").write_bytes(b"changed")
    with pytest.raises(ModelInvalid, match="expected sha256"):
        session.load()


def test_each_network_is_compared_with_its_part(make_model: MakeModel) -> None:
    model = with_second_network(make_model())
    outputs = [{"channel": 0, "value": 1}, {"channel": 1, "value": 0}]
    fewer = make_model(outputs=outputs).manifest
    part = fewer.model_copy(update={"networks": model.manifest.networks[1:]})
    parts = (model.manifest.model_copy(update={"networks": model.manifest.networks[:1]}), part)
    model = replace(model, manifest=model.manifest.model_copy(update={"parts": parts, "networks": ()}))
    with pytest.raises(ModelInvalid, match=r"expected one output of shape \['any', 2, 5, 4, 3\]"):
        load_model(model, CPU)


def test_one_network_in_fp32_or_on_another_provider_counts_for_the_model(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[FallsBackToCpu] = []

    def open_session(content: NetworkContent, **options: Any) -> Session:
        session = (FallsBackToCpu if len(opened) else WhollyOnOpenvino)(content, **options)
        opened.append(session)
        return session

    monkeypatch.setattr(session_cache_module, "Session", open_session)
    execution = replace(ON_OPENVINO, precision="fp32")
    loaded = load_model(with_second_network(make_model()), execution)
    assert (loaded.providers, loaded.single_provider) == ([OPENVINO, "CPUExecutionProvider"], False)
    assert [warning.code for warning in loaded.warnings] == [WarningCode.PROVIDER_UNUSED]
    assert "model test: the model does not run on OpenVINOExecutionProvider" in caplog.text
    opened.clear()
    with pytest.raises(ConfigurationError, match="does not run on OpenVINO"):
        load_model(with_second_network(make_model()), replace(execution, strict=True))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA failure 999: unknown error ; GPU=0 ; hostname=h", GpuFailed),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=h", GpuOutOfMemory),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", GpuOutOfMemory),
    ],
)
def test_a_gpu_error_while_loading_is_raised_and_not_cached(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, strict: bool, message: str, kind: type[GpuError]
) -> None:
    """The GPU was usable when the worker started, and may be usable again for the next job."""
    monkeypatch.setattr(session_cache_module, "Session", FallsBackToCpu)
    monkeypatch.setattr(FallsBackToCpu, "message", message)
    model = make_model()
    execution = ExecutionOptions(("CUDAExecutionProvider", "CPUExecutionProvider"), strict=strict)
    with pytest.raises(kind) as caught:
        load_model(model, execution)
    assert str(caught.value.__cause__) == message
    monkeypatch.setattr(session_cache_module, "Session", Session)
    assert load_model(model, execution.on_cpu()).providers == ["CPUExecutionProvider"]
    assert execution.on_cpu() == CPU


def test_a_model_that_runs_partly_on_its_provider_is_logged(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_cache_module, "Session", PartlyOnOpenvino)
    model = make_model()
    execution = replace(ON_OPENVINO, precision="fp32")
    (warning,) = load_model(model, execution).warnings
    assert warning.code == WarningCode.PROVIDER_PARTLY_USED
    assert "model test: a part of the model does not run on OpenVINOExecutionProvider" in caplog.text


@pytest.mark.usefixtures("_bfloat16")
def test_a_model_that_runs_partly_on_openvino_runs_in_fp32(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_cache_module, "Session", PartlyOnOpenvino)
    assert load_model(make_model(precisions=BOTH), ON_OPENVINO).precision == "fp32"
    assert "the model runs in fp32, not in bf16: a part of it runs on another provider" in caplog.text


def test_strict_execution_accepts_a_model_that_runs_wholly_on_the_first_provider(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_cache_module, "Session", WhollyOnOpenvino)
    execution = ExecutionOptions((OPENVINO, "CUDAExecutionProvider", "CPUExecutionProvider"), strict=True)
    assert load_model(make_model(), execution).single_provider
    assert caplog.text == ""


@pytest.mark.usefixtures("_bfloat16")
def test_a_model_runs_in_bf16_if_all_conditions_are_met(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_cache_module, "Session", WhollyOnOpenvino)
    model = make_model(precisions=BOTH)
    loaded = load_model(model, ON_OPENVINO)
    assert loaded.precision == "bf16"
    assert loaded.warnings == []
    assert load_model(model, replace(ON_OPENVINO, precision="fp32")).precision == "fp32"


@pytest.mark.usefixtures("_bfloat16")
@pytest.mark.parametrize(
    ("precisions", "providers", "reason"),
    [
        (("fp32",), ON_OPENVINO.providers, "its manifest does not allow it"),
        (BOTH, CPU.providers, "CPUExecutionProvider does not support it; OpenVINOExecutionProvider does"),
    ],
)
def test_a_model_that_cannot_run_in_bf16_runs_in_fp32_and_the_reason_is_logged(
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precisions: tuple[Precision, ...],
    providers: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.setattr(session_cache_module, "Session", WhollyOnOpenvino)
    execution = replace(ON_OPENVINO, providers=providers)
    model = make_model(precisions=precisions)
    loaded = load_model(model, execution)
    assert loaded.precision == "fp32"
    (warning,) = loaded.warnings
    assert warning.code == WarningCode.PRECISION_FALLBACK
    assert f"the model runs in fp32, not in bf16: {reason}" in caplog.text


def test_a_cpu_without_bf16_runs_in_fp32(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_cache_module, "Session", WhollyOnOpenvino)
    monkeypatch.setattr(session_cache_module, "has_bfloat16", lambda: False)
    assert load_model(make_model(precisions=BOTH), ON_OPENVINO).precision == "fp32"
    assert "the model runs in fp32, not in bf16: this CPU does not support it" in caplog.text
