from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from inference_service.core.errors import ConfigurationError, GpuError, GpuFailed, GpuOutOfMemory
from inference_service.core.execution import DEFAULT_GPU_OPTIONS, OPENVINO, ExecutionOptions, GpuOptions, Precision
from inference_service.core.report_warnings import WarningCode
from inference_service.engine import session_cache as session_cache_module
from inference_service.engine.model_registry import Model
from inference_service.engine.session import Session
from inference_service.engine.session_cache import SessionCache, load_session, session_warnings

MakeModel = Callable[..., Model]

CPU = ExecutionOptions(("CPUExecutionProvider",))
ON_OPENVINO = ExecutionOptions((OPENVINO, "CPUExecutionProvider"), precision="bf16")
BOTH = ("fp32", "bf16")


class FallsBackToCpu(Session):
    """A session that always falls back to the CPU."""

    message: str | None = "no reason given"

    def __init__(
        self,
        network: bytes,
        *,
        providers: Sequence[str],
        threads: int | None = None,
        precision: Precision = "fp32",
        spin: bool = False,
        gpu: GpuOptions = DEFAULT_GPU_OPTIONS,
    ) -> None:
        super().__init__(network, providers=["CPUExecutionProvider"], threads=threads, precision=precision, spin=spin)
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


def test_a_session_stays_loaded(make_model: MakeModel) -> None:
    model = make_model()
    sessions = SessionCache()
    assert sessions.load(model, CPU) is sessions.load(Model(model.manifest, model.manifest_sha256, model.folder), CPU)
    assert sessions.load(model, CPU) is not sessions.load(model, replace(CPU, threads=2))
    assert sessions.load(model, CPU) is not SessionCache().load(model, CPU)


def test_the_least_recently_used_session_is_dropped(make_model: MakeModel) -> None:
    models = [make_model(), make_model(labels=3, values=(0, 1, 2)), make_model(labels=2, values=(0, 1))]
    sessions = SessionCache(max_sessions=2)
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
    assert load_session(model, execution).providers == ["CPUExecutionProvider"]
    assert "model test: the model does not run on CUDAExecutionProvider" in caplog.text
    with pytest.raises(ConfigurationError, match="does not run on CUDAExecutionProvider"):
        load_session(model, replace(execution, strict=True))


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
        load_session(model, execution)
    assert str(caught.value.__cause__) == message
    monkeypatch.setattr(session_cache_module, "Session", Session)
    assert load_session(model, execution.on_cpu()).providers == ["CPUExecutionProvider"]
    assert execution.on_cpu() == CPU


def test_a_model_that_runs_partly_on_its_provider_is_logged(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_cache_module, "Session", PartlyOnOpenvino)
    model = make_model()
    execution = replace(ON_OPENVINO, precision="fp32")
    (warning,) = session_warnings(model, execution, load_session(model, execution))
    assert warning.code == WarningCode.PROVIDER_PARTLY_USED
    assert "model test: a part of the model does not run on OpenVINOExecutionProvider" in caplog.text


@pytest.mark.usefixtures("_bfloat16")
def test_a_model_that_runs_partly_on_openvino_runs_in_fp32(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_cache_module, "Session", PartlyOnOpenvino)
    assert load_session(make_model(precisions=BOTH), ON_OPENVINO).precision == "fp32"
    assert "the model runs in fp32, not in bf16: a part of it runs on another provider" in caplog.text


def test_strict_execution_accepts_a_model_that_runs_wholly_on_the_first_provider(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_cache_module, "Session", WhollyOnOpenvino)
    execution = ExecutionOptions((OPENVINO, "CUDAExecutionProvider", "CPUExecutionProvider"), strict=True)
    assert load_session(make_model(), execution).single_provider
    assert caplog.text == ""


@pytest.mark.usefixtures("_bfloat16")
def test_a_model_runs_in_bf16_if_all_conditions_are_met(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_cache_module, "Session", WhollyOnOpenvino)
    model = make_model(precisions=BOTH)
    session = load_session(model, ON_OPENVINO)
    assert session.precision == "bf16"
    assert session_warnings(model, ON_OPENVINO, session) == []
    assert load_session(model, replace(ON_OPENVINO, precision="fp32")).precision == "fp32"


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
    session = load_session(model, execution)
    assert session.precision == "fp32"
    (warning,) = session_warnings(model, execution, session)
    assert warning.code == WarningCode.PRECISION_FALLBACK
    assert f"the model runs in fp32, not in bf16: {reason}" in caplog.text


def test_a_cpu_without_bf16_runs_in_fp32(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_cache_module, "Session", WhollyOnOpenvino)
    monkeypatch.setattr(session_cache_module, "has_bfloat16", lambda: False)
    assert load_session(make_model(precisions=BOTH), ON_OPENVINO).precision == "fp32"
    assert "the model runs in fp32, not in bf16: this CPU does not support it" in caplog.text
