from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from inference_service.core.errors import ConfigurationError, GpuError, GpuFailed, GpuOutOfMemory
from inference_service.core.execution import OPENVINO, GpuOptions, Precision
from inference_service.engine import session_cache as engine_module
from inference_service.engine.model_registry import Model
from inference_service.engine.session import NO_GPU_OPTIONS, Session
from inference_service.engine.session_cache import Engine, load_session, session_warnings

MakeModel = Callable[..., Model]

CPU = Engine(("CPUExecutionProvider",))
ON_OPENVINO = Engine((OPENVINO, "CPUExecutionProvider"), precision="bf16")
BOTH = ("fp32", "bf16")


class OnTheCpu(Session):
    """Where every other provider falls back."""

    said: str | None = "it does not say why"

    def __init__(
        self,
        network: bytes,
        *,
        providers: Sequence[str],
        threads: int | None = None,
        precision: Precision = "fp32",
        spin: bool = False,
        gpu: GpuOptions = NO_GPU_OPTIONS,
    ) -> None:
        super().__init__(network, providers=["CPUExecutionProvider"], threads=threads, precision=precision, spin=spin)
        self.whole, self.refusal = False, self.said


class OnAll(OnTheCpu):
    """Where every provider is in use, but not for all of the network."""

    @property
    def providers(self) -> list[str]:
        return [OPENVINO, "CPUExecutionProvider"]


class OnOpenvino(OnAll):
    """Where OpenVINO has all of the network."""

    def __init__(
        self,
        network: bytes,
        *,
        providers: Sequence[str],
        threads: int | None = None,
        precision: Precision = "fp32",
        spin: bool = False,
        gpu: GpuOptions = NO_GPU_OPTIONS,
    ) -> None:
        super().__init__(network, providers=providers, threads=threads, precision=precision, spin=spin)
        self.whole = True


@pytest.fixture
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "has_bfloat16", lambda: True)


@pytest.fixture(autouse=True)
def _cold() -> None:
    load_session.cache_clear()


def test_session_stays_warm(make_model: MakeModel) -> None:
    model = make_model()
    assert load_session(model, CPU) is load_session(Model(model.manifest, model.folder), CPU)
    assert load_session(model, CPU) is not load_session(model, replace(CPU, threads=2))


def test_few_sessions_stay_warm(make_model: MakeModel) -> None:
    models = [make_model(), make_model(labels=3, values=(0, 1, 2)), make_model(labels=2, values=(0, 1))]
    first = load_session(models[0], CPU)
    for model in models[1:]:
        load_session(model, CPU)
    assert load_session(models[0], CPU) is not first


def test_a_strict_engine_refuses_a_model_that_falls_back(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "Session", OnTheCpu)
    model, engine = make_model(), Engine(("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert load_session(model, engine).providers == ["CPUExecutionProvider"]
    assert "model test: it does not run on CUDAExecutionProvider" in caplog.text
    with pytest.raises(ConfigurationError, match="does not run on CUDAExecutionProvider"):
        load_session(model, replace(engine, strict=True))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("CUDA failure 999: unknown error ; GPU=0 ; hostname=h", GpuFailed),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=h", GpuOutOfMemory),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", GpuOutOfMemory),
    ],
)
def test_what_a_gpu_fails_to_load_is_for_a_cpu_and_not_kept(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, strict: bool, said: str, kind: type[GpuError]
) -> None:
    """It was usable when the worker started, and may be again for the next job."""
    monkeypatch.setattr(engine_module, "Session", OnTheCpu)
    monkeypatch.setattr(OnTheCpu, "said", said)
    model, engine = make_model(), Engine(("CUDAExecutionProvider", "CPUExecutionProvider"), strict=strict)
    with pytest.raises(kind) as caught:
        load_session(model, engine)
    assert str(caught.value.__cause__) == said
    monkeypatch.setattr(engine_module, "Session", Session)
    assert load_session(model, engine.on_cpu()).providers == ["CPUExecutionProvider"]
    assert engine.on_cpu() == CPU


def test_a_provider_that_has_but_a_part_of_the_model_is_told_of(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "Session", OnAll)
    load_session(make_model(), replace(ON_OPENVINO, precision="fp32"))
    assert "model test: a part of it does not run on OpenVINOExecutionProvider" in caplog.text


@pytest.mark.usefixtures("_bfloat16")
def test_a_model_that_is_not_whole_on_openvino_runs_in_fp32(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "Session", OnAll)
    assert load_session(make_model(precisions=BOTH), ON_OPENVINO).precision == "fp32"
    assert "it runs in fp32, not in bf16: not all of it runs where that is computed" in caplog.text


def test_a_strict_engine_takes_a_model_that_its_first_provider_has_all_of(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "Session", OnOpenvino)
    engine = Engine((OPENVINO, "CUDAExecutionProvider", "CPUExecutionProvider"), strict=True)
    assert load_session(make_model(), engine).whole
    assert caplog.text == ""


@pytest.mark.usefixtures("_bfloat16")
def test_bf16_is_computed_where_all_allow_it(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "Session", OnOpenvino)
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
        (BOTH, CPU.providers, "CPUExecutionProvider does not compute in it; OpenVINOExecutionProvider does"),
    ],
)
def test_where_bf16_cannot_be_it_is_fp32_and_said_why(
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precisions: tuple[Precision, ...],
    providers: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.setattr(engine_module, "Session", OnOpenvino)
    engine = replace(ON_OPENVINO, providers=providers)
    assert load_session(make_model(precisions=precisions), engine).precision == "fp32"
    assert f"it runs in fp32, not in bf16: {reason}" in caplog.text


def test_a_cpu_without_bf16_computes_in_fp32(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "Session", OnOpenvino)
    monkeypatch.setattr(engine_module, "has_bfloat16", lambda: False)
    assert load_session(make_model(precisions=BOTH), ON_OPENVINO).precision == "fp32"
    assert "it runs in fp32, not in bf16: this CPU does not compute in it" in caplog.text
