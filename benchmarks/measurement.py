"""What passes between the benchmark and the processes of its sides, and what is kept of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

CaseName = Literal[
    "forward", "sliding-window", "job", "growth", "nnunet",
    "gpu-agreement", "gpu-floor", "gpu-window", "gpu-window-31m", "gpu-job", "gpu-queue",
]  # fmt: skip
NetworkName = Literal["0.35 M", "5.6 M", "31 M"]
Program = Literal[
    "forward_torch", "forward_onnx", "window_monai", "window_ours", "job_ours", "job_nnunet",
    "queue_ours", "floor_torch",
]  # fmt: skip
Provider = Literal["cpu", "openvino", "cuda"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Device = Literal["cpu", "cuda"]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Side:
    """One of those compared.

    Attributes:
        name: What tables and results call it.
        program: The module of `benchmarks.sides` that runs it.
        provider: What runs the network in ONNX Runtime; None is PyTorch.
        precision: What the network computes in; with PyTorch fp16 is its automatic mixture.
        device: What PyTorch runs on.
        sums_on_device: Whether our engine adds windows up in the GPU's memory.
        jobs: How many jobs a worker runs at a time.
    """

    name: str
    program: Program
    provider: Provider | None = None
    precision: Precision = "fp32"
    device: Device = "cpu"
    sums_on_device: bool = False
    jobs: int = 1

    @property
    def on_gpu(self) -> bool:
        """Whether its network runs on an NVIDIA GPU."""
        return self.provider == "cuda" or self.device == "cuda"


@dataclass(frozen=True)
class Task:
    """What the process of one side is told.

    Attributes:
        workspace: The folder of all inputs.
        case: Names the model's folder there.
        network: Names the weights there.
        side: Which side this process is.
        source: The input: a window or volume (.npy), or a scan (.nii.gz).
        labels: Where the labels go as .npy, outside the timed part; None where nobody compares them.
        threads: That every side may use.
    """

    workspace: Path
    case: CaseName
    network: NetworkName
    side: Side
    source: Path
    labels: Path | None
    threads: int


@dataclass(frozen=True)
class Run:
    """What the process of one side measured.

    Attributes:
        seconds: The timed part; of repeats, their median.
        network_s: Of it, in the network itself.
        network_runs: How often the network ran in it.
        peak_mb: Peak resident memory of the process from its start, imports and loading included, in 10⁶ bytes.
        above_model_mb: Peak above what the process held before the job and what loading the model added.
        stages_s: Seconds of each stage, where the side has stages.
        repeats_s: Each repeat, where there are several.
        device_mb: Peak of the GPU's memory above what it held before, in 10⁶ bytes; 0 where none is used.
        figures: What a side measures that is no run of a network.
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
    """A run, and what it was a run of."""

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
    """A side that did not finish; why it did not is on the terminal alone, for it may name paths."""

    case: CaseName
    subject: str
    side: str
    round: int
    status: int
