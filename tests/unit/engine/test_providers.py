import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime
import pytest

from inference_service.core.errors import ConfigurationError
from inference_service.core.execution import CPU, CUDA, TENSORRT
from inference_service.engine import providers
from inference_service.engine.providers import (
    RESULT_PREFIX,
    ProbeResult,
    log_providers,
    probe_providers,
    usable_providers,
)

AZURE = "AzureExecutionProvider"


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    probe_providers.cache_clear()
    yield
    probe_providers.cache_clear()


@pytest.fixture
def run_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Replaces the subprocess of the probe by a shell script."""

    def replace(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))

    return replace


def line(provider: str, reason: str | None = None) -> str:
    return f"echo '{RESULT_PREFIX}{json.dumps({'provider': provider, 'reason': reason})}'\n"


def test_the_real_probe_finds_the_cpu_and_never_azure() -> None:
    probes = {probe.provider: probe.reason for probe in probe_providers()}
    assert probes[CPU] is None
    assert AZURE not in probes
    assert usable_providers()[-1] == CPU
    assert onnxruntime.get_available_providers()[-1] == CPU


def test_the_probe_runs_once(run_probe: Callable[[str], None], tmp_path: Path) -> None:
    run_probe(line(CPU) + f"echo again >> {tmp_path}/runs")
    assert usable_providers() == usable_providers() == [CPU]
    assert (tmp_path / "runs").read_text() == "again\n"


def test_the_cpu_is_listed_last(run_probe: Callable[[str], None]) -> None:
    run_probe(line(CPU) + line(TENSORRT) + line(CUDA))
    assert usable_providers() == [TENSORRT, CUDA, CPU]


def test_a_probe_that_crashes_keeps_its_results(
    run_probe: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    run_probe(line(CPU) + line(TENSORRT, "no library") + "kill -SEGV $$")
    assert probe_providers() == (ProbeResult(CPU, None), ProbeResult(TENSORRT, "no library"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records if record.levelno > logging.DEBUG] == [
        ("WARNING", "the probe of the ONNX providers ended with status -11")
    ]


def test_other_output_of_the_probe_is_ignored(run_probe: Callable[[str], None]) -> None:
    run_probe("echo '[INFO] loading plug-ins'\n" + line(CPU) + "echo; echo '{\"devices\": 1}'; echo 7")
    assert probe_providers() == (ProbeResult(CPU, None),)


@pytest.mark.parametrize("script", ["exit 0", "kill -SEGV $$", "echo no onnxruntime >&2; exit 1"])
def test_a_probe_without_results_is_an_error(run_probe: Callable[[str], None], script: str) -> None:
    run_probe(script)
    with pytest.raises(ConfigurationError, match=r"inference-service\[cpu\]"):
        probe_providers()


def test_a_probe_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch, run_probe: Callable[[str], None]) -> None:
    monkeypatch.setattr(providers, "PROBE_LIMIT_S", 0.2)
    run_probe("exec sleep 30")
    with pytest.raises(ConfigurationError, match=r"did not end within 0\.2 s"):
        probe_providers()


def test_exactly_three_lines_are_logged(run_probe: Callable[[str], None], caplog: pytest.LogCaptureFixture) -> None:
    run_probe(line(CPU))
    with caplog.at_level(logging.INFO):
        log_providers([CPU], [CPU])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "ONNX providers requested: ['CPUExecutionProvider']"),
        ("INFO", "ONNX providers available: ['CPUExecutionProvider']"),
        ("INFO", "ONNX providers using: ['CPUExecutionProvider']"),
    ]


def test_a_warning_is_logged_for_each_requested_provider_that_is_not_usable(
    run_probe: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    run_probe(line(CPU) + line(TENSORRT, "libnvinfer.so.10 is missing") + line("ROCMExecutionProvider"))
    with caplog.at_level(logging.INFO):
        log_providers((TENSORRT, CUDA, CPU), (CPU,))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", f"ONNX providers requested: ['{TENSORRT}', '{CUDA}', '{CPU}']"),
        ("INFO", f"ONNX providers available: ['ROCMExecutionProvider', '{CPU}']"),
        ("INFO", f"ONNX providers using: ['{CPU}']"),
        ("WARNING", f"ONNX provider {TENSORRT} is requested but not usable here: libnvinfer.so.10 is missing"),
        (
            "WARNING",
            f"ONNX provider {CUDA} is requested but not usable here: the installed ONNX Runtime does not include it, "
            "or its probe crashed",
        ),
    ]
