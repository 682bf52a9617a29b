"""The cases: the sides that are compared, on which networks and volumes. Seven run on CPUs, six on an NVIDIA GPU."""

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.measurement import CaseName, ImportedKind, NetworkName, Shape, Side

Source = Literal["window", "volume", "scan"]

# Rounds less than asked for, of cases whose runs take minutes.
_ROUNDS_LESS = {"nnunet": 1, "parts": 2}
_MIN_VOXELS = 8


@dataclass(frozen=True)
class Subject:
    """The input of all sides of a case.

    Attributes:
        name: Name in tables and results.
        network: The network.
        source: One window or one volume of noise, or a scan of a phantom in a file.
        shape: Voxels of the source along each axis.
        imported: The kind of source that its model is imported from; None: the model is that of the case.
    """

    name: str
    network: NetworkName
    source: Source
    shape: Shape
    imported: ImportedKind | None = None


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: Name on the command line (`--only`).
        title: Title of its table.
        subjects: The inputs, each measured on its own.
        sides: The sides. Tables compare the others with the first.
        compared: Pairs of sides whose labels are compared: a side and its reference.
    """

    name: CaseName
    title: str
    subjects: tuple[Subject, ...]
    sides: tuple[Side, ...]
    compared: tuple[tuple[str, str], ...] = ()

    def rounds(self, asked: int) -> int:
        """Number of runs of each side."""
        return max(1, asked - _ROUNDS_LESS.get(self.name, 0))

    def scaled(self, scale: float) -> "Case":
        """Returns the same case with smaller volumes, to try out the benchmark itself."""
        return replace(self, subjects=tuple(_scaled(subject, scale) for subject in self.subjects))


def _scaled(subject: Subject, scale: float) -> Subject:
    if subject.source == "window" or scale == 1:
        return subject
    i, j, k = (max(_MIN_VOXELS, round(size * scale)) for size in subject.shape)
    return replace(subject, name=subject.name if subject.imported else _named((i, j, k)), shape=(i, j, k))


def _volume(network: NetworkName, source: Source, shape: Shape) -> Subject:
    return Subject(_named(shape), network, source, shape)


def _named(shape: Shape) -> str:
    return "×".join(map(str, shape))


FORWARD = Case(
    "forward",
    "Forward pass of one window",
    (
        Subject("0.35 M, 96³", "0.35 M", "window", (96, 96, 96)),
        Subject("5.6 M, 96³", "5.6 M", "window", (96, 96, 96)),
        Subject("31 M, 128³", "31 M", "window", (128, 128, 128)),
    ),
    (
        Side("torch", "forward_torch"),
        Side("onnxruntime-cpu", "forward_onnx", "cpu"),
        Side("onnxruntime-openvino", "forward_onnx", "openvino"),
        Side("onnxruntime-openvino-bf16", "forward_onnx", "openvino", "bf16"),
    ),
)
SLIDING_WINDOW = Case(
    "sliding-window",
    "Sliding window in memory, labels included",
    (_volume("5.6 M", "volume", (256, 256, 160)),),
    (
        Side("monai-torch", "window_monai"),
        Side("monai-onnxruntime-cpu", "window_monai", "cpu"),
        Side("monai-onnxruntime-openvino", "window_monai", "openvino"),
        Side("ours-cpu", "window_ours", "cpu"),
        Side("ours-openvino", "window_ours", "openvino"),
        Side("ours-openvino-bf16", "window_ours", "openvino", "bf16"),
    ),
    (
        ("ours-cpu", "monai-onnxruntime-cpu"),
        ("ours-openvino", "monai-onnxruntime-openvino"),
        ("ours-cpu", "monai-torch"),
        ("ours-openvino", "monai-torch"),
        ("ours-openvino-bf16", "monai-torch"),
    ),
)
JOB = Case(
    "job",
    "Whole job, file to file",
    (_volume("5.6 M", "scan", (512, 512, 300)),),
    (Side("ours-openvino", "job_ours", "openvino"), Side("ours-cpu", "job_ours", "cpu")),
)
GROWTH = Case(
    "growth",
    "Whole job by the scan's length",
    tuple(_volume("0.35 M", "scan", (512, 512, slices)) for slices in (150, 300, 600, 1200)),
    (Side("ours-openvino", "job_ours", "openvino"),),
)
NNUNET = Case(
    "nnunet",
    "Whole job against nnU-Net's predictor",
    (_volume("31 M", "scan", (512, 512, 300)),),
    (
        Side("nnunet", "job_nnunet"),
        Side("ours-openvino", "job_ours", "openvino"),
        Side("ours-openvino-bf16", "job_ours", "openvino", "bf16"),
    ),
    (("ours-openvino", "nnunet"), ("ours-openvino-bf16", "nnunet"), ("ours-openvino-bf16", "ours-openvino")),
)
IMPORT = Case(
    "import",
    "Whole job of imported models against their sources' own predictors",
    (
        Subject("nnU-Net", "5.6 M", "scan", (512, 512, 300), "nnunet"),
        Subject("MONAI bundle", "5.6 M", "scan", (512, 512, 300), "monai"),
    ),
    (
        Side("source", "job_source"),
        Side("ours-cpu", "job_ours", "cpu"),
        Side("ours-openvino", "job_ours", "openvino"),
    ),
    (("ours-cpu", "source"), ("ours-openvino", "source")),
)
PARTS = Case(
    "parts",
    "Whole job of a model of five parts",
    (_volume("31 M", "scan", (512, 512, 300)),),
    (Side("ours-openvino", "job_ours", "openvino"),),
)
CASES: dict[str, Case] = {case.name: case for case in (FORWARD, SLIDING_WINDOW, JOB, GROWTH, NNUNET, IMPORT, PARTS)}

_MONAI_ON_GPU = (
    Side("monai-torch", "window_monai", precision="tf32", device="cuda"),
    Side("monai-torch-amp", "window_monai", precision="fp16", device="cuda"),
)
_OURS_ON_GPU = (
    Side("ours-tf32", "window_ours", "cuda", "tf32"),
    Side("ours-fp16", "window_ours", "cuda", "fp16"),
    Side("ours-tf32-device", "window_ours", "cuda", "tf32", aggregate_on_device=True),
)
_GPU_PAIRS = (("ours-tf32", "monai-torch"), ("ours-fp16", "monai-torch-amp"))
GPU_AGREEMENT = Case(
    "gpu-agreement",
    "The GPU's labels against the CPU's",
    (_volume("5.6 M", "volume", (192, 192, 160)),),
    (
        Side("ours-cpu", "window_ours", "cpu"),
        Side("ours-fp32", "window_ours", "cuda"),
        *_OURS_ON_GPU,
    ),
    (
        ("ours-fp32", "ours-cpu"),
        ("ours-tf32", "ours-cpu"),
        ("ours-fp16", "ours-cpu"),
        ("ours-tf32-device", "ours-tf32"),
    ),
)
GPU_FLOOR = Case(
    "gpu-floor",
    "Limits of the card",
    (Subject("5.6 M, 96³", "5.6 M", "window", (96, 96, 96)), Subject("31 M, 128³", "31 M", "window", (128, 128, 128))),
    (Side("floor-tf32", "floor_torch", None, "tf32", "cuda"), Side("floor-fp16", "floor_torch", None, "fp16", "cuda")),
)
GPU_WINDOW = Case(
    "gpu-window",
    "Sliding window in memory on the GPU, labels included",
    (_volume("5.6 M", "volume", (512, 512, 300)),),
    (*_MONAI_ON_GPU, *_OURS_ON_GPU),
    _GPU_PAIRS,
)
GPU_WINDOW_31M = Case(
    "gpu-window-31m",
    "The same with the larger network",
    (_volume("31 M", "volume", (512, 512, 300)),),
    (*_MONAI_ON_GPU, *_OURS_ON_GPU),
    _GPU_PAIRS,
)
GPU_JOB = Case(
    "gpu-job",
    "Whole job on the GPU, file to file",
    (_volume("5.6 M", "scan", (512, 512, 300)),),
    (
        Side("ours-tf32", "job_ours", "cuda", "tf32"),
        Side("ours-fp16", "job_ours", "cuda", "fp16"),
        Side("ours-tf32-device", "job_ours", "cuda", "tf32", aggregate_on_device=True),
    ),
)
GPU_QUEUE = Case(
    "gpu-queue",
    "Jobs from a queue that never empties, through a worker of role gpu",
    (_volume("5.6 M", "scan", (512, 512, 300)),),
    (
        Side("ours-tf32", "queue_ours", "cuda", "tf32"),
        Side("ours-tf32-two", "queue_ours", "cuda", "tf32", jobs=2),
    ),
)
GPU_CASES: dict[str, Case] = {
    case.name: case for case in (GPU_AGREEMENT, GPU_FLOOR, GPU_WINDOW, GPU_WINDOW_31M, GPU_JOB, GPU_QUEUE)
}
