import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from inference_service.core.execution import CPU
from inference_service.engine import provider_probe
from inference_service.engine.providers import RESULT_PREFIX

CUDA = "CUDAExecutionProvider"
AZURE = "AzureExecutionProvider"


def results(text: str) -> list[dict[str, str | None]]:
    return [
        json.loads(line.removeprefix(RESULT_PREFIX)) for line in text.splitlines() if line.startswith(RESULT_PREFIX)
    ]


def test_the_probe_network_is_one_convolution() -> None:
    around = [1, 1, 2, 2, 2]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1] * 5, np.ones(1, np.float32).tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, around)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, around)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert model.SerializeToString(deterministic=True) == provider_probe._NETWORK


class FallingBack(onnxruntime.InferenceSession):  # type: ignore[misc]
    """ONNX Runtime without CUDA's libraries: it accepts the request and runs on the CPU."""

    def __init__(self, model: bytes, options: object, providers: Sequence[str], enable_fallback: int = 1) -> None:
        if not enable_fallback:
            raise RuntimeError(f"{'a/path/in/its/source.cc:12 ' * 100}\nCUDA failure 35: no driver")
        super().__init__(model, options, providers=[CPU])


def test_a_provider_that_falls_back_silently_is_not_usable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallingBack)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, AZURE, CPU])
    provider_probe.main()
    cpu, cuda = results(capsys.readouterr().out)
    assert cpu == {"provider": CPU, "reason": None}
    reason = str(cuda["reason"])
    assert reason.startswith(f"ONNX Runtime fell back to {[CPU]}: ")
    assert reason.endswith("CUDA failure 35: no driver")
    assert len(reason) < 400


def test_a_gpu_that_fails_on_the_first_run_is_not_usable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, model: bytes, options: object, providers: Sequence[tuple[str, object]], **_: object) -> None:
            super().__init__(model, options, providers=[CPU])
            self._given = [name for name, _ in providers]

        def get_providers(self) -> list[str]:
            return self._given

        def run(self, *arguments: object) -> object:
            if CUDA in self._given:
                raise onnxruntime.capi.onnxruntime_pybind11_state.Fail(
                    "CUDNN failure 1002: broken ; GPU=0 ; hostname=h"
                )
            return super().run(*arguments)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Failing)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    provider_probe.main()
    assert results(capsys.readouterr().out) == [
        {"provider": CPU, "reason": None},
        {"provider": CUDA, "reason": "CUDNN failure 1002: broken"},
    ]


def test_a_library_that_cannot_be_loaded_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "libonnxruntime_providers_cuda.so").write_bytes(b"broken")
    monkeypatch.setattr(provider_probe, "_LIBRARIES", tmp_path)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallingBack)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    provider_probe.main()
    _, cuda = results(capsys.readouterr().out)
    assert "libonnxruntime_providers_cuda.so: file too short" in str(cuda["reason"])


def test_the_reason_of_a_provider_that_fails_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise onnxruntime.capi.onnxruntime_pybind11_state.EPFail("CUDA driver version is insufficient")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    provider_probe.main()
    assert results(capsys.readouterr().out) == [{"provider": CUDA, "reason": "CUDA driver version is insufficient"}]
