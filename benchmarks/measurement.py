"""The messages between the benchmark and the processes of its sides, and the measurements."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

CaseName = Literal[
    "forward", "sliding-window", "job", "growth", "nnunet", "import", "parts",
    "gpu-agreement", "gpu-floor", "gpu-window", "gpu-window-31m", "gpu-job", "gpu-queue",
]  # fmt: skip
NetworkName = Literal["0.35 M", "5.6 M", "31 M"]
Program = Literal[
    "forward_torch", "forward_onnx", "window_monai", "window_ours", "job_ours", "job_nnunet",
    "job_source", "queue_ours", "floor_torch",
]  # fmt: skip
Provider = Literal["cpu", "openvino", "cuda"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Device = Literal["cpu", "cuda"]
ImportedKind = Literal["nnunet", "monai"]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Side:
    """One way to run the network, which is compared with others.

    Attributes:
        name: Name in tables and results.
        program: The module of `benchmarks.sides` that runs it.
        provider: ONNX Runtime's execution provider; None: PyTorch.
        precision: Precision of the network; fp16 in PyTorch is automatic mixed precision.
        device: Device of PyTorch.
        aggregate_on_device: Whether the service's engine aggregates windows in the GPU's memory.
        jobs: Jobs that a worker runs at a time.
    """

    name: str
    program: Program
    provider: Provider | None = None
    precision: Precision = "fp32"
    device: Device = "cpu"
    aggregate_on_device: bool = False
    jobs: int = 1

    @property
    def on_gpu(self) -> bool:
        """True if the network runs on an NVIDIA GPU."""
        return self.provider == "cuda" or self.device == "cuda"


@dataclass(frozen=True)
class Task:
    """The task of one side's process.

    Attributes:
        workspace: The folder of all inputs.
        model: Name of the model's folder there.
        network: Name of the weights there.
        side: The side that this process runs.
        source: The input: a window or volume (.npy), or a scan (.nii.gz).
        labels: Path for the labels as .npy, written outside the timed part; None where they are not compared.
        threads: Threads that the side may use.
    """

    workspace: Path
    model: str
    network: NetworkName
    side: Side
    source: Path
    labels: Path | None
    threads: int


@dataclass(frozen=True)
class Run:
    """The measurement of one side's process.

    Attributes:
        seconds: Seconds of the timed part, or the median of its repeats.
        network_s: Seconds of the network in the timed part.
        network_runs: Runs of the network in the timed part.
        peak_mb: Peak resident memory of the process from its start, imports and loading included, in 10⁶ bytes.
        above_model_mb: Peak memory of the job above the memory of the process before it and of the loaded model.
        stages_s: Seconds of each stage, where the side has stages.
        repeats_s: Seconds of each repeat, where there are several.
        device_mb: Peak GPU memory above that before the run, in 10⁶ bytes; 0 where no GPU is used.
        figures: Other figures that the side measures.
    """

    seconds: float
    network_s: float
    network_runs: int
    peak_mb: float
    above_model_mb: float
    stages_s: dict[str, float]
    repeats_s: tuple[float, ...] = ()
    device_mb: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """A run, with its case, subject, side and round."""

    case: CaseName
    subject: str
    shape: Shape
    side: str
    round: int
    run: Run


@dataclass(frozen=True)
class Agreement:
    """The share of voxels on which two sides' labels are equal, after the last round."""

    case: CaseName
    subject: str
    side: str
    reference: str
    share: float


@dataclass(frozen=True)
class Failure:
    """A side that did not finish. The reason is printed and not kept, because it may contain paths."""

    case: CaseName
    subject: str
    side: str
    round: int
    status: int
