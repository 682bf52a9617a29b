"""The paths of inputs and labels in the benchmark's temporary folder."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import Subject
from benchmarks.measurement import CaseName, ImportedKind, NetworkName, Precision

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

    @property
    def models(self) -> Path:
        """The folder of all models for the service's engine."""
        return self.root / "models"

    def model(self, name: str, precision: Precision = "fp32") -> Path:
        """The model folder of a case, or of a kind of imported source, for the service's engine."""
        return self.models.with_name(f"models{_suffix(precision)}") / name / "1"

    def imported_source(self, kind: ImportedKind) -> Path:
        """The source that a model is imported from."""
        return self.root / f"source-{kind}"

    def reference(self, name: str) -> Path:
        """The predictor of an imported model's source, with its arguments, as JSON."""
        return self.root / f"reference-{name}.json"

    @property
    def nnunet(self) -> Path:
        """The model folder for nnU-Net, which it calls a trained model's output folder."""
        return self.root / "nnunet"

    def labels(self, case: CaseName, subject: Subject, side: str) -> Path:
        """The labels that one side writes."""
        name = subject.imported or "-".join(map(str, subject.shape))
        return self.root / f"labels-{case}-{name}-{side}.npy"


def _suffix(precision: Precision) -> str:
    return "-fp16" if precision == "fp16" else ""


def _plain(network: NetworkName) -> str:
    return network.replace(" ", "")
