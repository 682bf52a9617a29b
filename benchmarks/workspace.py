"""The paths of inputs and labels in the benchmark's temporary folder."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import Subject
from benchmarks.measurement import CaseName, NetworkName, Precision

_ENDINGS = {"window": ".npy", "volume": ".npy", "scan": ".nii.gz"}


@dataclass(frozen=True)
class Workspace:
    """The temporary folder of one case."""

    root: Path

    def weights(self, network: NetworkName) -> Path:
        """The network's weights for PyTorch."""
        return self.root / f"{_plain(network)}.pt"

    def onnx(self, network: NetworkName, precision: Precision = "fp32") -> Path:
        """The exported network; fp16 has a file of its own."""
        return self.root / f"{_plain(network)}{_suffix(precision)}.onnx"

    def source(self, subject: Subject) -> Path:
        """A subject's input."""
        i, j, k = subject.shape
        return self.root / f"{subject.source}-{i}-{j}-{k}{_ENDINGS[subject.source]}"

    def model(self, case: CaseName, precision: Precision = "fp32") -> Path:
        """The model folder of a case for the service's engine."""
        return self.root / f"models{_suffix(precision)}" / case / "1"

    @property
    def nnunet(self) -> Path:
        """The model folder for nnU-Net, which it calls a trained model's output folder."""
        return self.root / "nnunet"

    def labels(self, case: CaseName, subject: Subject, side: str) -> Path:
        """The labels that one side writes."""
        return self.root / f"labels-{case}-{'-'.join(map(str, subject.shape))}-{side}.npy"


def _suffix(precision: Precision) -> str:
    return "-fp16" if precision == "fp16" else ""


def _plain(network: NetworkName) -> str:
    return network.replace(" ", "")
