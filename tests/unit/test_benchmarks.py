"""The benchmark's plans, summaries and reports; the measured peers are not installed for these tests."""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import gpu, rounds
from benchmarks.__main__ import main
from benchmarks.cases import (
    CASES,
    GPU_AGREEMENT,
    GPU_CASES,
    GPU_FLOOR,
    GPU_JOB,
    GPU_QUEUE,
    GPU_WINDOW,
    GPU_WINDOW_31M,
    GROWTH,
    IMPORT,
    JOB,
    NNUNET,
    PARTS,
    SLIDING_WINDOW,
    Case,
    Subject,
)
from benchmarks.inputs import write_inputs
from benchmarks.machine import describe_machine
from benchmarks.measurement import Agreement, CaseName, Failure, Measurement, Run, Side
from benchmarks.models import case_manifest, write_parts
from benchmarks.networks import NETWORKS
from benchmarks.nnunet_folder import write_nnunet_folder
from benchmarks.results import Results, free_file
from benchmarks.rounds import compare_labels, run_rounds
from benchmarks.summary import DETAILS, GPU_DETAILS, GPU_SUMMARY, SUMMARY, Measured, exponent, medians, slope, work_out
from benchmarks.tables import case_tables, summary_table
from benchmarks.watch import DeviceWatch, MemoryWatch, NetworkClock
from benchmarks.workspace import Workspace
from inference_service.contract.intensity import CtIntensity
from inference_service.engine.model_registry import read_model

# The project's goals refer to these keys of the summary.
KEYS = {
    "sw_speedup_vs_monai_torch_openvino",
    "sw_speedup_vs_monai_torch_cpu",
    "sw_speedup_vs_monai_ort",
    "sw_outside_network_fraction",
    "sw_peak_memory_vs_monai",
    "sw_label_agreement",
    "job_outside_network_s",
    "job_peak_above_model_mb",
    "growth_time_exponent",
    "growth_memory_mb_per_300_slices",
    "nnunet_speedup",
    "nnunet_speedup_bf16",
    "nnunet_peak_memory_ratio",
    "import_speedup_cpu",
    "import_speedup_openvino",
    "import_peak_memory_ratio",
    "parts_s",
    "parts_peak_mb",
}
SLICES = (150, 300, 600, 1200)
ALL_CASES = CASES | GPU_CASES


def measurement(
    case: Case, side: str, *, seconds: float, subject: int = 0, round_: int = 1, **run: object
) -> Measurement:
    plain = Run(seconds, 0.9 * seconds, 10, peak_mb=1000.0, above_model_mb=400.0, stages_s={"model_load": 0.5})
    of = case.subjects[subject]
    return Measurement(case.name, of.name, of.shape, side, round_, replace(plain, **run))  # type: ignore[arg-type]


def sample() -> tuple[list[Measurement], list[Agreement]]:
    """A run of all cases, in round numbers."""
    sliding_window = {
        "monai-torch": (120.0, 1600.0),
        "monai-onnxruntime-cpu": (66.0, 1500.0),
        "monai-onnxruntime-openvino": (30.0, 1500.0),
        "ours-cpu": (60.0, 800.0),
        "ours-openvino": (24.0, 400.0),
        "ours-openvino-bf16": (12.0, 300.0),
    }
    nnunet = {"nnunet": (300.0, 10_000.0), "ours-openvino": (75.0, 3000.0), "ours-openvino-bf16": (50.0, 2500.0)}
    measurements = [
        measurement(case, side, seconds=seconds, peak_mb=peak_mb)
        for case, sides in ((SLIDING_WINDOW, sliding_window), (NNUNET, nnunet))
        for side, (seconds, peak_mb) in sides.items()
    ]
    measurements += [
        measurement(JOB, "ours-openvino", seconds=30.0, network_s=26.0, above_model_mb=900.0),
        measurement(JOB, "ours-cpu", seconds=50.0, network_s=45.0, above_model_mb=800.0),
    ]
    measurements += [
        measurement(GROWTH, "ours-openvino", subject=index, seconds=0.1 * slices + 0.5, peak_mb=500 + 0.8 * slices)
        for index, slices in enumerate(SLICES)
    ]
    measurements += [
        measurement(IMPORT, side, seconds=seconds, subject=subject, peak_mb=peak_mb)
        for subject, figures in enumerate(
            (
                {"source": (60.0, 5000.0), "ours-cpu": (40.0, 1900.0), "ours-openvino": (12.0, 1800.0)},
                {"source": (80.0, 4000.0), "ours-cpu": (40.0, 1500.0), "ours-openvino": (20.0, 1600.0)},
            )
        )
        for side, (seconds, peak_mb) in figures.items()
    ]
    measurements.append(measurement(PARTS, "ours-openvino", seconds=600.0, peak_mb=5000.0))
    agreements = [
        Agreement("sliding-window", SLIDING_WINDOW.subjects[0].name, side, reference, share)
        for side, reference, share in (
            ("ours-cpu", "monai-onnxruntime-cpu", 1.0),
            ("ours-openvino", "monai-onnxruntime-openvino", 0.99995),
            ("ours-openvino", "monai-torch", 0.998),
        )
    ]
    agreements += [
        Agreement("import", subject.name, "ours-cpu", "source", share)
        for subject, share in zip(IMPORT.subjects, (0.9999, 0.9995), strict=True)
    ]
    return measurements, agreements


def test_summary_of_all_cases() -> None:
    summary = work_out(SUMMARY, Measured(*sample()))
    assert summary == pytest.approx(
        {
            "sw_speedup_vs_monai_torch_openvino": 5.0,
            "sw_speedup_vs_monai_torch_cpu": 2.0,
            "sw_speedup_vs_monai_ort": 1.1,
            "sw_outside_network_fraction": 0.1,
            "sw_peak_memory_vs_monai": 0.5,
            "sw_label_agreement": 0.99995,
            "job_outside_network_s": 5.0,
            "job_peak_above_model_mb": 900.0,
            "growth_time_exponent": 1.0,
            "growth_memory_mb_per_300_slices": 240.0,
            "nnunet_speedup": 4.0,
            "nnunet_speedup_bf16": 6.0,
            "nnunet_peak_memory_ratio": 0.3,
            "import_speedup_cpu": 1.5,
            "import_speedup_openvino": 4.0,
            "import_peak_memory_ratio": 0.4,
            "parts_s": 600.0,
            "parts_peak_mb": 5000.0,
        }
    )
    assert set(summary) == set(SUMMARY) == KEYS


def gpu_sample() -> tuple[list[Measurement], list[Agreement]]:
    """A run of all GPU cases, in round numbers."""
    windows = {"monai-torch": 4.0, "monai-torch-amp": 3.0, "ours-tf32": 2.0, "ours-fp16": 2.5}
    measurements = [
        measurement(case, side, seconds=seconds, network_runs=500, device_mb=3000.0)
        for case in (GPU_WINDOW, GPU_WINDOW_31M)
        for side, seconds in windows.items()
    ]
    card = {"flops_per_s": 2e14, "bytes_per_s": 3e12}
    measurements += [
        measurement(GPU_FLOOR, side, seconds=0.1, subject=subject, figures={**card, "window_flops": flops})
        for side in ("floor-tf32", "floor-fp16")
        for subject, flops in enumerate((1e11, 4e11))
    ]
    measurements += [
        measurement(GPU_JOB, "ours-tf32", seconds=4.0, device_mb=5000.0),
        measurement(GPU_QUEUE, "ours-tf32", seconds=3.0),
    ]
    subject = GPU_AGREEMENT.subjects[0].name
    return measurements, [Agreement("gpu-agreement", subject, "ours-fp32", "ours-cpu", 0.9995)]


def test_summary_of_a_gpu() -> None:
    measured = Measured(*gpu_sample())
    assert work_out(GPU_SUMMARY, measured) == pytest.approx(
        {
            "job_s": 4.0,
            "jobs_per_minute": 20.0,
            "sw_speedup_vs_monai_torch": 1.2,
            "device_memory_mb": 5000.0,
            "label_agreement_fp32": 0.9995,
            # 500 windows of 0.1 TFLOP at 200 TFLOP/s.
            "fraction_of_floor": 0.125,
        }
    )
    details = work_out(GPU_DETAILS, measured)
    assert details["fraction_of_floor_31m"] == pytest.approx(0.5)
    assert set(GPU_DETAILS) - set(details) == {"label_agreement_tf32", "label_agreement_fp16"}
    assert work_out(GPU_SUMMARY, Measured(*sample())) == {}


def test_details_contain_the_growth_due_to_scan_and_mask() -> None:
    details = work_out(DETAILS, Measured(*sample()))
    assert details["growth_scan_and_mask_mb_per_300_slices"] == pytest.approx(512 * 512 * 300 * 3 / 1e6)
    assert details["import_label_agreement"] == 0.9995
    assert "nnunet_label_agreement" not in details


@pytest.mark.parametrize(
    ("case", "keys"),
    [
        ("forward", 0),
        ("sliding-window", 6),
        ("job", 2),
        ("growth", 2),
        ("nnunet", 3),
        ("import", 3),
        ("parts", 2),
    ],
)
def test_the_summary_omits_the_keys_of_cases_not_run(case: CaseName, keys: int) -> None:
    measurements, agreements = sample()
    measured = Measured(
        [each for each in measurements if each.case == case], [each for each in agreements if each.case == case]
    )
    assert len(work_out(SUMMARY, measured)) == keys


@pytest.mark.parametrize("missing", ["monai-onnxruntime-openvino", "ours-cpu"])
def test_a_worst_case_is_omitted_when_a_side_is_missing(missing: str) -> None:
    measurements, agreements = sample()
    measured = Measured([each for each in measurements if each.side != missing], agreements)
    assert "sw_speedup_vs_monai_ort" not in work_out(SUMMARY, measured)


def test_medians_are_taken_over_rounds_field_by_field() -> None:
    found = medians(
        measurement(
            JOB,
            "ours-cpu",
            round_=number,
            seconds=seconds,
            network_s=network_s,
            peak_mb=peak_mb,
            stages_s={"read": read_s},
        )
        for number, (seconds, network_s, peak_mb, read_s) in enumerate(
            [(10.0, 4.0, 700.0, 0.3), (30.0, 29.0, 500.0, 0.1), (20.0, 15.0, 600.0, 0.2)], start=1
        )
    )
    (median,) = found
    assert (median.rounds, median.seconds, median.network_s, median.outside_network_s) == (3, 20.0, 15.0, 5.0)
    assert (median.peak_mb, median.stages_s) == (600.0, {"read": 0.2})


def test_medians_keep_subjects_and_sides_apart() -> None:
    measurements, _ = sample()
    assert len(medians(measurements)) == len(measurements)


def test_slope_and_exponent() -> None:
    assert slope(SLICES, [7 + 0.25 * slices for slices in SLICES]) == pytest.approx(0.25)
    assert exponent(SLICES, [3 * math.sqrt(slices) for slices in SLICES]) == pytest.approx(0.5)


@pytest.mark.parametrize("case", ALL_CASES.values(), ids=list(ALL_CASES))
def test_cases_compare_sides_that_they_have(case: Case) -> None:
    sides = {side.name for side in case.sides}
    assert len(sides) == len(case.sides)
    assert {name for pair in case.compared for name in pair} <= sides


@pytest.mark.parametrize("case", ALL_CASES.values(), ids=list(ALL_CASES))
def test_scaling_changes_only_the_volumes(case: Case) -> None:
    small = case.scaled(0.25)
    assert small.sides == case.sides
    for before, after in zip(case.subjects, small.subjects, strict=True):
        assert after.network == before.network
        expected = [size if before.source == "window" else round(size / 4) for size in before.shape]
        assert list(after.shape) == expected
    assert case.scaled(1) == case


def test_the_longest_case_runs_one_round_less_than_the_others() -> None:
    assert {case.name: case.rounds(3) for case in CASES.values()} == dict.fromkeys(CASES, 3) | {"nnunet": 2, "parts": 1}
    assert NNUNET.rounds(1) == 1


def test_windows_of_noise_have_the_size_of_the_networks_window() -> None:
    for subject in CASES["forward"].subjects:
        assert subject.shape == (NETWORKS[subject.network].window,) * 3


@pytest.mark.parametrize("name", ["sliding-window", "job", "growth", "nnunet"])
def test_manifests_allow_both_precisions(name: CaseName) -> None:
    manifest = case_manifest(name, NETWORKS["31 M"], "0" * 64)
    assert manifest.precisions == ("fp32", "bf16")
    assert (manifest.window, len(manifest.labels)) == ((128, 128, 128), 25)


def test_parts_have_labels_of_their_own(tmp_path: Path) -> None:
    onnx = tmp_path / "network.onnx"
    onnx.write_bytes(b"network")
    write_parts(tmp_path / "parts" / "1", NETWORKS["31 M"], onnx)
    manifest = read_model(tmp_path / "parts" / "1").manifest
    assert [part.values for part in manifest.all_parts] == [
        list(range(first, first + 24)) for first in (1, 25, 49, 73, 97)
    ]
    assert len(manifest.network_files) == 5
    assert manifest.preparation == manifest.all_parts[4].preparation


def test_nnunet_gets_the_same_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Torch:
        saved: dict[str, object]

        def load(self, path: Path, *, weights_only: bool) -> str:
            return f"{path.name} {weights_only}"

        def save(self, checkpoint: dict[str, object], path: Path) -> None:
            self.saved = checkpoint
            path.touch()

    torch = Torch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    unet = NETWORKS["31 M"]
    write_nnunet_folder(tmp_path, unet, tmp_path / "weights.pt")
    assert torch.saved["network_weights"] == "weights.pt True"
    assert (tmp_path / "fold_0" / "checkpoint_final.pth").exists()
    plans = json.loads((tmp_path / "plans.json").read_text())
    data_set = json.loads((tmp_path / "dataset.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    ct = plans["foreground_intensity_properties_per_channel"]["0"]
    manifest = case_manifest("nnunet", unet, "0" * 64)
    assert configuration["spacing"] == list(manifest.spacing_mm)
    assert configuration["patch_size"] == list(manifest.window)
    assert [label.value for label in manifest.labels] == list(data_set["labels"].values())
    (intensity,) = manifest.channels[0].intensities
    assert isinstance(intensity, CtIntensity)
    assert (ct["percentile_00_5"], ct["percentile_99_5"]) == intensity.clip
    assert (ct["mean"], ct["std"]) == (intensity.mean, intensity.std)
    assert configuration["architecture"]["arch_kwargs"]["features_per_stage"] == [32, 64, 128, 256, 320, 320]


@pytest.fixture
def tiny() -> Case:
    subjects = tuple(Subject(name, "5.6 M", "volume", (4, 3, 2)) for name in ("one", "two"))
    return Case("job", "Tiny", subjects, (Side("a", "job_ours", "cpu"), Side("b", "job_ours", "cpu")), (("a", "b"),))


def test_sides_alternate_and_every_other_round_is_reversed(
    tiny: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(
        case: Case, subject: Subject, side: Side, workspace: Workspace, number: int, threads: int
    ) -> Measurement | Failure:
        return Failure(case.name, subject.name, side.name, number, threads)

    monkeypatch.setattr(rounds, "_run_side", run)
    events: list[Measurement | Failure] = []
    run_rounds(tiny, Workspace(tmp_path), rounds=3, threads=7, tell=events.append)
    forward = [("one", "a"), ("one", "b"), ("two", "a"), ("two", "b")]
    backward = [("one", "b"), ("one", "a"), ("two", "b"), ("two", "a")]
    assert [(each.subject, each.side) for each in events] == [*forward, *backward, *forward]
    assert [each.round for each in events] == [1] * 4 + [2] * 4 + [3] * 4


def test_a_side_that_fails_is_recorded_and_its_error_is_printed(
    tiny: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[Measurement | Failure] = []
    run_rounds(replace(tiny, subjects=tiny.subjects[:1]), Workspace(tmp_path), rounds=1, threads=1, tell=events.append)
    assert events == [Failure("job", "one", side, 1, 1) for side in ("a", "b")]
    assert "manifest.json" in capfd.readouterr().err


def test_labels_are_compared_if_both_sides_wrote_them(tiny: Case, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    one = tiny.subjects[0]
    assert compare_labels(tiny, workspace) == []
    labels = np.zeros((4, 3, 2), np.uint8)
    np.save(workspace.labels("job", one, "a"), labels)
    labels[0, 0] = 1
    np.save(workspace.labels("job", one, "b"), labels)
    shares = {agreement.share for agreement in compare_labels(replace(tiny, subjects=(one,)), workspace)}
    assert shares == {22 / 24}


def test_results_are_complete_and_contain_neither_host_nor_folder_names(tmp_path: Path) -> None:
    measurements, agreements = sample()
    results = Results(describe_machine(), 1.0, measurements, agreements, [Failure("job", "x", "ours-cpu", 1, 1)])
    path = tmp_path / "results" / "one.json"
    results.write(path)
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    assert set(content["summary"]) == KEYS
    assert len(content["measurements"]) == len(measurements)
    assert content["machine"]["usable_cpus"] >= 1
    assert content["machine"]["packages"]["torch"] is None or content["machine"]["packages"]["torch"]
    for secret in (platform.node(), str(Path.home()), str(Path.cwd())):
        assert f'"{secret}' not in text


SMI = """#!/bin/sh
case "$*" in
*memory.used*) for used in 100 1100 700; do echo $used; done; exec sleep 60 ;;
*) echo 'NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB' ;;
esac
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a substitute for NVIDIA's program on the PATH."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("nvidia_smi")
def test_peak_gpu_memory_is_measured() -> None:
    with DeviceWatch() as watch:
        deadline = time.monotonic() + 30
        while not watch.peak_mb and time.monotonic() < deadline:
            time.sleep(0.01)
    assert watch.peak_mb == pytest.approx(1000 * 2**20 / 1e6)


def test_without_a_gpu_its_memory_is_0_and_the_gpu_benchmark_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with DeviceWatch() as watch:
        pass
    assert watch.peak_mb == 0
    ended = CliRunner().invoke(gpu.main, [])
    assert ended.exit_code == 1
    assert "no NVIDIA GPU" in ended.output


@pytest.mark.usefixtures("nvidia_smi")
def test_results_of_a_gpu_name_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(case: Case, workspace: Workspace, *, rounds: int, threads: int, tell: Callable[..., None]) -> None:
        tell(measurement(case, "ours-tf32", seconds=4.0))

    monkeypatch.setattr("benchmarks.__main__.run_rounds", run)
    monkeypatch.setattr("benchmarks.__main__.write_inputs", lambda case, workspace: None)
    monkeypatch.setattr(gpu, "FOLDER", tmp_path / "results")
    ended = CliRunner().invoke(gpu.main, ["--only", "gpu-job"], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    (path,) = (tmp_path / "results").iterdir()
    assert path.name.endswith("-gpu-nvidia-h100-80gb-hbm3.json")
    content = json.loads(path.read_text())
    assert (content["machine"]["gpu_driver_version"], content["summary"]["job_s"]) == ("580.65.06", 4.0)


def test_an_earlier_run_of_the_day_is_never_overwritten(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        path = free_file(tmp_path, date(2026, 3, 9))
        path.touch()
        names.append(path.name)
    assert names == ["2026-03-09.json", "2026-03-09-2.json", "2026-03-09-3.json"]


def test_tables_show_every_side() -> None:
    measurements, agreements = sample()
    results = Results({}, 1.0, measurements, agreements)
    for case in (SLIDING_WINDOW, NNUNET):
        first, *_ = case_tables(case, results)
        assert first.row_count == len(case.sides)
    assert len(case_tables(SLIDING_WINDOW, results)) == 3
    assert summary_table(results).row_count == len(work_out(SUMMARY | DETAILS, results.measured))


def test_results_are_written_after_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(case: Case, workspace: Workspace, *, rounds: int, threads: int, tell: Callable[..., None]) -> None:
        if case.name == "growth":
            raise KeyboardInterrupt
        tell(measurement(JOB, "ours-openvino", seconds=1.0))
        tell(measurement(JOB, "ours-cpu", seconds=2.0))

    monkeypatch.setattr("benchmarks.__main__.run_rounds", interrupted)
    monkeypatch.setattr("benchmarks.__main__.write_inputs", lambda case, workspace: None)
    path = tmp_path / "results.json"
    ended = CliRunner().invoke(main, ["--only", "job", "--only", "growth", "--output", str(path)])
    assert ended.exit_code == 1
    assert "job_outside_network_s" in json.loads(path.read_text())["summary"]


def test_noise_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.inputs.save", lambda unet, *, weights, onnx: onnx.write_bytes(b"network"))
    case = replace(SLIDING_WINDOW, subjects=(Subject("tiny", "5.6 M", "volume", (9, 8, 7)),))
    volumes = []
    for name in ("first", "second"):
        workspace = Workspace(tmp_path / name)
        workspace.root.mkdir()
        write_inputs(case, workspace)
        volumes.append(np.load(workspace.source(case.subjects[0])))
        assert (workspace.model("sliding-window") / "manifest.json").exists()
    assert volumes[0].shape == (9, 8, 7)
    assert volumes[0].dtype == np.float32
    np.testing.assert_array_equal(*volumes)


def test_memory_of_the_model_and_of_the_job_are_measured_separately() -> None:
    watch = MemoryWatch()
    with watch.loading():
        model = np.ones(5_000_000)
        passing = np.ones(5_000_000)
        del passing
    job = np.ones(10_000_000)
    watch.finish()
    assert watch.loads == 1
    assert watch.above_model_mb == pytest.approx(job.nbytes / 1e6, abs=15)
    assert watch.peak_mb > (model.nbytes + job.nbytes) / 1e6


def test_the_network_clock_returns_the_results_of_the_timed_function() -> None:
    clock = NetworkClock()
    half = clock.timed(lambda value, by=2: value / by)
    assert (half(8), half(9, by=3)) == (4.0, 3.0)
    assert clock.runs == 2
    assert clock.seconds > 0
