"""What is said about a finished mask: `report.json`, its model and its figures."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from inference_service.manifest import Manifest
from inference_service.volume import Volume

# Planes whose histogram is taken at a time: bounds the memory of the statistics.
_PLANES_AT_A_TIME = 16


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputReport(_Part):
    """The scan as it was read; nothing that could name a patient."""

    sha256: str = Field(description="Of the file as it was fetched.")
    shape: tuple[int, int, int] = Field(description="Voxels along each axis of the file.")
    spacing_mm: tuple[float, float, float]
    orientation: str = Field(description="Towards where each axis of the file runs, for example LPS.")
    affine: list[list[float]] = Field(description="Voxel index to RAS+ mm, 4×4.")


class ModelReport(_Part):
    """The model that ran."""

    name: str
    version: str
    sha256: str


class LabelReport(_Part):
    """One label's figures on the scan's own grid."""

    value: int
    name: str
    voxels: int
    volume_ml: float
    intensity_mean: float | None = Field(description="In the scan's unit (HU for CT); null where there is no voxel.")
    intensity_std: float | None


class Report(_Part):
    """All of `report.json`."""

    service_version: str
    input: InputReport
    model: ModelReport
    providers: list[str] = Field(description="ONNX Runtime execution providers really in use, best first.")
    windows: int = Field(description="How many windows the network ran on.")
    labels: list[LabelReport]
    timings_s: dict[str, float] = Field(description="Seconds of each stage up to the writing of the mask.")
    warnings: list[str]

    def write(self, path: Path) -> None:
        """Writes the report as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def measure_labels(mask: NDArray[np.unsignedinteger], volume: Volume, manifest: Manifest) -> list[LabelReport]:
    """Counts each label's voxels and describes the intensities under it.

    Args:
        mask: Shape (i, j, k), on the scan's grid.
        volume: The scan.
        manifest: Names the labels.
    """
    size = max(label.value for label in manifest.labels) + 1
    count, total, squares = np.zeros(size), np.zeros(size), np.zeros(size)
    for start in range(0, mask.shape[2], _PLANES_AT_A_TIME):
        values = mask[:, :, start : start + _PLANES_AT_A_TIME].ravel(order="F")
        intensities = volume.voxels[:, :, start : start + _PLANES_AT_A_TIME].ravel(order="F").astype(np.float64)
        count += np.bincount(values, minlength=size)
        total += np.bincount(values, weights=intensities, minlength=size)
        squares += np.bincount(values, weights=intensities**2, minlength=size)
    reports = []
    for label in manifest.labels:
        voxels = int(count[label.value])
        mean = float(total[label.value] / voxels) if voxels else None
        variance = squares[label.value] / voxels - mean**2 if mean is not None else 0.0
        reports.append(
            LabelReport(
                value=label.value,
                name=label.name,
                voxels=voxels,
                volume_ml=voxels * volume.voxel_volume_ml,
                intensity_mean=mean,
                intensity_std=float(np.sqrt(max(variance, 0.0))) if mean is not None else None,
            )
        )
    return reports
