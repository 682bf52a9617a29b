"""Computes medians, ratios, and the summary that the project's goals are checked against, from all measurements."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from benchmarks.measurement import Agreement, CaseName, Measurement, Shape

_SLICES = 300
_BYTES_PER_MB = 1_000_000
# The scan is int16, the mask uint8.
_BYTES_PER_VOXEL = 2 + 1


class NotMeasured(Exception):
    """A figure needs a side that did not run."""


@dataclass(frozen=True)
class Median:
    """Medians over the rounds of one side, of each field on its own."""

    case: CaseName
    subject: str
    shape: Shape
    side: str
    rounds: int
    seconds: float
    network_s: float
    outside_network_s: float
    peak_mb: float
    above_model_mb: float
    device_mb: float
    network_runs: int
    stages_s: dict[str, float]
    figures: dict[str, float]


class Measured:
    """The measurements, as figures need them."""

    def __init__(self, measurements: Iterable[Measurement], agreements: Iterable[Agreement]) -> None:
        self.medians = medians(measurements)
        self._agreements = list(agreements)

    def sides(self, case: CaseName, side: str) -> list[Median]:
        """Returns the medians of one side of a case on each of its subjects."""
        found = [median for median in self.medians if (median.case, median.side) == (case, side)]
        if not found:
            raise NotMeasured(f"{case} {side}")
        return found

    def side(self, case: CaseName, side: str) -> Median:
        """Returns the medians of one side of a case with a single subject."""
        (median,) = self.sides(case, side)
        return median

    def speedup(self, case: CaseName, side: str, reference: str) -> float:
        """Seconds of the reference over those of a side; on several subjects the least of it."""
        return min(theirs.seconds / ours.seconds for ours, theirs in self._pairs(case, side, reference))

    def peak_ratio(self, case: CaseName, side: str, reference: str) -> float:
        """Peak memory of a side's process over that of the reference's; on several subjects the largest of it."""
        return max(ours.peak_mb / theirs.peak_mb for ours, theirs in self._pairs(case, side, reference))

    def agreement(self, case: CaseName, side: str, reference: str) -> float:
        """Share of voxels with equal labels; on several subjects the least of it."""
        pair = (case, side, reference)
        shares = [each.share for each in self._agreements if (each.case, each.side, each.reference) == pair]
        if not shares:
            raise NotMeasured(" ".join(pair))
        return min(shares)

    def _pairs(self, case: CaseName, side: str, reference: str) -> list[tuple[Median, Median]]:
        """The medians of two sides on each subject."""
        theirs = {median.subject: median for median in self.sides(case, reference)}
        pairs = [(ours, theirs[ours.subject]) for ours in self.sides(case, side) if ours.subject in theirs]
        if not pairs:
            raise NotMeasured(f"{case} {side} {reference}")
        return pairs


@dataclass(frozen=True)
class Figure:
    """One key of the summary.

    Attributes:
        of: Computes it; raises NotMeasured where a side did not run.
        goal: The project's goal.
    """

    of: Callable[[Measured], float]
    goal: str = ""


def medians(measurements: Iterable[Measurement]) -> list[Median]:
    """Returns the medians of each side on each subject, in the order of their first measurement."""
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault((measurement.case, measurement.subject, measurement.side), []).append(measurement)
    return [_median(group) for group in groups.values()]


def _median(group: list[Measurement]) -> Median:
    first = group[0]
    runs = [measurement.run for measurement in group]
    return Median(
        case=first.case,
        subject=first.subject,
        shape=first.shape,
        side=first.side,
        rounds=len(runs),
        seconds=statistics.median(run.seconds for run in runs),
        network_s=statistics.median(run.network_s for run in runs),
        outside_network_s=statistics.median(run.seconds - run.network_s for run in runs),
        peak_mb=statistics.median(run.peak_mb for run in runs),
        above_model_mb=statistics.median(run.above_model_mb for run in runs),
        device_mb=statistics.median(run.device_mb for run in runs),
        network_runs=runs[0].network_runs,
        stages_s={stage: statistics.median(run.stages_s.get(stage, 0.0) for run in runs) for stage in runs[0].stages_s},
        figures={name: statistics.median(run.figures[name] for run in runs) for name in runs[0].figures},
    )


def slope(x: Iterable[float], y: Iterable[float]) -> float:
    """Slope of the least-squares line through points.

    >>> slope([1, 2, 3], [5, 7, 9])
    2.0
    """
    return statistics.linear_regression(list(x), list(y)).slope


def exponent(x: Iterable[float], y: Iterable[float]) -> float:
    """Exponent of the power of x that y grows with: the slope of their logarithms.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 9)
    2.0
    """
    return slope([math.log(value) for value in x], [math.log(value) for value in y])


def _growth(measured: Measured) -> list[Median]:
    found = measured.sides("growth", "ours-openvino")
    if len(found) < 2:
        raise NotMeasured("growth needs two lengths")
    return found


def _growth_exponent(measured: Measured) -> float:
    """Exponent of the time without the loading of the model, which is constant and would lower it."""
    found = _growth(measured)
    return exponent(
        [median.shape[2] for median in found],
        [median.seconds - median.stages_s.get("model_load", 0.0) for median in found],
    )


def _growth_memory(measured: Measured) -> float:
    found = _growth(measured)
    return _SLICES * slope([median.shape[2] for median in found], [median.peak_mb for median in found])


def _scan_and_mask(measured: Measured) -> float:
    return _SLICES * prod(_growth(measured)[0].shape[:2]) * _BYTES_PER_VOXEL / _BYTES_PER_MB


def _ours_file_to_file(measured: Measured) -> list[Median]:
    return [measured.side("job", side) for side in ("ours-openvino", "ours-cpu")]


def _outside_share(measured: Measured, side: str) -> float:
    median = measured.side("sliding-window", side)
    return median.outside_network_s / median.seconds


def _fraction_of_floor(measured: Measured, case: CaseName, side: str, floor: str) -> float:
    """Seconds of the windows' operations at the card's measured rate of matrix products, over those of the run."""
    median = measured.side(case, side)
    subject = {"gpu-window": 0, "gpu-window-31m": 1}[case]
    figures = measured.sides("gpu-floor", floor)[subject].figures
    return median.network_runs * figures["window_flops"] / figures["flops_per_s"] / median.seconds


def _speedup(case: CaseName, side: str, reference: str) -> Callable[[Measured], float]:
    return lambda measured: measured.speedup(case, side, reference)


def _peak(case: CaseName, side: str, reference: str) -> Callable[[Measured], float]:
    return lambda measured: measured.peak_ratio(case, side, reference)


def _device_mb(case: CaseName, side: str) -> Callable[[Measured], float]:
    return lambda measured: measured.side(case, side).device_mb


def _card(side: str, figure: str) -> Callable[[Measured], float]:
    return lambda measured: measured.sides("gpu-floor", side)[0].figures[figure]


def _agreement(case: CaseName, side: str, reference: str) -> Callable[[Measured], float]:
    return lambda measured: measured.agreement(case, side, reference)


def _worst(
    choose: Callable[[Iterable[float]], float], *figures: Callable[[Measured], float]
) -> Callable[[Measured], float]:
    return lambda measured: choose(figure(measured) for figure in figures)


_SAME_PROVIDER = (("ours-cpu", "monai-onnxruntime-cpu"), ("ours-openvino", "monai-onnxruntime-openvino"))
_SW: CaseName = "sliding-window"
_GPU_WINDOWS: tuple[CaseName, ...] = ("gpu-window", "gpu-window-31m")
_GPU_PAIRS = (("ours-tf32", "monai-torch"), ("ours-fp16", "monai-torch-amp"))

SUMMARY: dict[str, Figure] = {
    "sw_speedup_vs_monai_torch_openvino": Figure(_speedup(_SW, "ours-openvino", "monai-torch"), "≥ 3"),
    "sw_speedup_vs_monai_torch_cpu": Figure(_speedup(_SW, "ours-cpu", "monai-torch"), "≥ 1.4"),
    "sw_speedup_vs_monai_ort": Figure(_worst(min, *(_speedup(_SW, *pair) for pair in _SAME_PROVIDER)), "≥ 1"),
    "sw_outside_network_fraction": Figure(lambda measured: _outside_share(measured, "ours-openvino"), "≤ 0.05"),
    "sw_peak_memory_vs_monai": Figure(
        _worst(max, *(_peak(_SW, side, "monai-torch") for side in ("ours-openvino", "ours-cpu"))), "≤ 0.5"
    ),
    "sw_label_agreement": Figure(_worst(min, *(_agreement(_SW, *pair) for pair in _SAME_PROVIDER)), "≥ 0.9999"),
    "job_outside_network_s": Figure(
        lambda measured: max(median.outside_network_s for median in _ours_file_to_file(measured)), "≤ 8"
    ),
    "job_peak_above_model_mb": Figure(
        lambda measured: max(median.above_model_mb for median in _ours_file_to_file(measured)), "≤ 1500"
    ),
    "growth_time_exponent": Figure(_growth_exponent, "≈ 1"),
    "growth_memory_mb_per_300_slices": Figure(_growth_memory, "scan and mask"),
    "nnunet_speedup": Figure(_speedup("nnunet", "ours-openvino", "nnunet"), "≥ 3"),
    "nnunet_speedup_bf16": Figure(_speedup("nnunet", "ours-openvino-bf16", "nnunet"), "≥ 5"),
    "nnunet_peak_memory_ratio": Figure(_peak("nnunet", "ours-openvino", "nnunet"), "≤ 0.4"),
    "import_speedup_cpu": Figure(_speedup("import", "ours-cpu", "source"), "≥ 1"),
    "import_speedup_openvino": Figure(_speedup("import", "ours-openvino", "source"), "≥ 3"),
    "import_peak_memory_ratio": Figure(
        _worst(max, *(_peak("import", side, "source") for side in ("ours-openvino", "ours-cpu"))), "≤ 0.4"
    ),
    "parts_s": Figure(lambda measured: measured.side("parts", "ours-openvino").seconds),
    "parts_peak_mb": Figure(lambda measured: measured.side("parts", "ours-openvino").peak_mb),
}
GPU_SUMMARY: dict[str, Figure] = {
    "job_s": Figure(lambda measured: measured.side("gpu-job", "ours-tf32").seconds, "≤ 5"),
    "jobs_per_minute": Figure(lambda measured: 60 / measured.side("gpu-queue", "ours-tf32").seconds, "≥ 15"),
    "sw_speedup_vs_monai_torch": Figure(
        _worst(min, *(_speedup(case, *pair) for case in _GPU_WINDOWS for pair in _GPU_PAIRS)), "≥ 1"
    ),
    "device_memory_mb": Figure(lambda measured: measured.side("gpu-job", "ours-tf32").device_mb, "≤ 8000"),
    "label_agreement_fp32": Figure(_agreement("gpu-agreement", "ours-fp32", "ours-cpu"), "≥ 0.999"),
    "fraction_of_floor": Figure(lambda measured: _fraction_of_floor(measured, "gpu-window", "ours-tf32", "floor-tf32")),
}
GPU_DETAILS: dict[str, Figure] = {
    "label_agreement_tf32": Figure(_agreement("gpu-agreement", "ours-tf32", "ours-cpu")),
    "label_agreement_fp16": Figure(_agreement("gpu-agreement", "ours-fp16", "ours-cpu")),
    **{
        f"{case.replace('-', '_')}_speedup_{side}_vs_{reference}": Figure(_speedup(case, side, reference))
        for case in _GPU_WINDOWS
        for side, reference in _GPU_PAIRS
    },
    **{
        f"{case.replace('-', '_')}_device_mb_{side}": Figure(_device_mb(case, side))
        for case in _GPU_WINDOWS
        for pair in _GPU_PAIRS
        for side in pair
    },
    "fraction_of_floor_31m": Figure(
        lambda measured: _fraction_of_floor(measured, "gpu-window-31m", "ours-tf32", "floor-tf32")
    ),
    "fraction_of_floor_fp16": Figure(
        lambda measured: _fraction_of_floor(measured, "gpu-window", "ours-fp16", "floor-fp16")
    ),
    "card_tf32_flops_per_s": Figure(_card("floor-tf32", "flops_per_s")),
    "card_fp16_flops_per_s": Figure(_card("floor-fp16", "flops_per_s")),
    "card_bytes_per_s": Figure(_card("floor-tf32", "bytes_per_s")),
}
DETAILS: dict[str, Figure] = {
    **{
        f"sw_speedup_{side}_vs_{reference}": Figure(_speedup(_SW, side, reference))
        for side, reference in (*_SAME_PROVIDER, ("ours-openvino-bf16", "monai-torch"))
    },
    **{
        f"sw_peak_memory_{side}_vs_{reference}": Figure(_peak(_SW, side, reference))
        for side, reference in _SAME_PROVIDER
    },
    "sw_outside_network_fraction_ours_cpu": Figure(lambda measured: _outside_share(measured, "ours-cpu")),
    "growth_scan_and_mask_mb_per_300_slices": Figure(_scan_and_mask),
    "import_label_agreement": Figure(_agreement("import", "ours-cpu", "source")),
    "nnunet_label_agreement": Figure(_agreement("nnunet", "ours-openvino", "nnunet")),
    "nnunet_label_agreement_bf16": Figure(_agreement("nnunet", "ours-openvino-bf16", "nnunet")),
    "nnunet_peak_memory_ratio_bf16": Figure(_peak("nnunet", "ours-openvino-bf16", "nnunet")),
}


def work_out(figures: Mapping[str, Figure], measured: Measured) -> dict[str, float]:
    """Computes the figures whose sides have all run."""
    values = {}
    for key, figure in figures.items():
        try:
            values[key] = figure.of(measured)
        except NotMeasured:
            continue
    return values
