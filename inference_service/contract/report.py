"""The contents of `report.json`, which describes one mask and how it was made."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from inference_service.contract.task_message import Tolerance
from inference_service.core.execution import Precision

Point = tuple[float, float, float]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputReport(_Part):
    """The scan as it was read; nothing that could name a patient."""

    kind: Literal["nifti", "dicom"] = Field(description="What it was read from.")
    sha256: str = Field(description="Of the file as it was fetched; of several files, that of their sorted sha256.")
    shape: tuple[int, int, int] = Field(description="Voxels along each axis of the file.")
    spacing_mm: tuple[float, float, float]
    orientation: str = Field(description="Towards where each axis of the file runs, for example LPS.")
    affine: list[list[float]] = Field(description="Voxel index to RAS+ mm, 4×4.")
    modality: str | None = Field(description="As a DICOM series states it; null where the input does not.")
    slices: int | None = Field(description="How many slices of a DICOM series the scan was made of.")
    set_aside: dict[str, int] = Field(
        description="How many files of the input are no part of the scan, by reason: not_dicom, no_image, "
        "unreadable, localizer, secondary_capture, projection, reformat, mosaic, colour, lookup_table, no_position, "
        "single_image, other_series."
    )
    replaced_voxels: int = Field(description="Voxels that were NaN or infinite, and got the least finite value.")
    cropped_to: list[tuple[int, int]] | None = Field(
        description="Where the model's manifest asks for a crop: the first voxel that was looked at along each axis of "
        "the file, and the one after the last; null where all was."
    )


class ModelReport(_Part):
    """The model that ran."""

    name: str
    version: str
    sha256: str


class OptionsReport(_Part):
    """What the request said of its input."""

    series: str | None = Field(description="SeriesInstanceUID of the series that was meant.")
    tolerate: list[Tolerance]
    modality_check: bool


class CentroidReport(_Part):
    """A label's centre of mass, each voxel counting the same, in mm."""

    ras: Point = Field(description="To the patient's right, the front and the head, as in NIfTI.")
    lps: Point = Field(description="To the patient's left, the back and the head, as in DICOM.")


class LabelReport(_Part):
    """One label's figures on the scan's own grid."""

    value: int
    name: str
    voxels: int
    volume_ml: float
    intensity_mean: float | None = Field(description="In the scan's unit (HU for CT); null where there is no voxel.")
    intensity_std: float | None
    bounding_box: list[tuple[int, int]] | None = Field(
        description="The label's first voxel along each axis of the file, and the one after its last; null where there "
        "is no voxel."
    )
    centroid_mm: CentroidReport | None
    components: int | None = Field(
        description="How many parts the label has; voxels that share a corner belong together. Null where the mask is "
        "little but noise, and its parts were not counted."
    )


class Report(_Part):
    """All of `report.json`."""

    service_version: str
    onnxruntime_version: str
    input: InputReport
    options: OptionsReport
    model: ModelReport
    providers: list[str] = Field(description="ONNX Runtime execution providers really in use, best first.")
    precision: Precision = Field(description="What the network was computed in.")
    windows: int = Field(
        description="How many windows cover the scan; mirrored, the network runs several times on each."
    )
    labels: list[LabelReport]
    files: list[str] = Field(description="What was written beside this report.")
    empty_segments: list[str] = Field(
        description="Labels that a DICOM segmentation describes as segments, and that no voxel has there."
    )
    timings_s: dict[str, float] = Field(description="Seconds of each stage up to the writing of the mask.")
    warnings: list[str]

    def write(self, path: Path) -> None:
        """Writes the report as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
