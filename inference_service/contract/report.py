"""The schema of `report.json`, which describes one mask and how it was made."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from inference_service.contract.labels import Rgb
from inference_service.contract.slice_selection import SelectValue
from inference_service.contract.task_message import Tolerance
from inference_service.core.execution import Precision
from inference_service.core.files import Checksum
from inference_service.core.report_warnings import ReportWarning

Point = tuple[float, float, float]

InputFormat = Literal["nifti", "analyze", "dicom", "nrrd", "metaimage"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChannelReport(_Part):
    """The scan of one input channel, on its own grid."""

    name: str = Field(description="Name of the channel in the model's manifest.")
    kind: InputFormat = Field(description="Format of the scan.")
    sha256: str = Field(description="SHA-256 of its file; for several files, of their sorted SHA-256 values.")
    shape: tuple[int, int, int] = Field(description="Number of voxels along each axis of the file.")
    spacing_mm: tuple[float, float, float]
    modality: str | None = Field(description="Modality of the scan, as in DICOM; null if it states none.")
    resampled: bool = Field(description="Whether it was resampled to the grid of the first channel.")


class InputReport(_Part):
    """The scan as it was read, without patient data; of several channels the first one, on whose grid the mask lies."""

    kind: InputFormat = Field(description="Format of the input.")
    sha256: str = Field(
        description="SHA-256 of the input file; for several files, of their sorted SHA-256 values; for the scans of "
        "several channels, of the channels' values in the order of the model."
    )
    shape: tuple[int, int, int] = Field(description="Number of voxels along each axis of the file.")
    spacing_mm: tuple[float, float, float]
    orientation: str = Field(description="Direction of each axis of the file, for example LPS.")
    affine: list[list[float]] = Field(description="4×4 matrix from voxel indices to RAS+ coordinates in mm.")
    modality: str | None = Field(description="Modality of the scan, as in DICOM; null if the input states none.")
    value_type: str | None = Field(
        None,
        description="What the values measure: RescaleType, such as HU, or the term of another attribute of the DICOM "
        "series that contradicts it, and ? for a term that is not known; null if the input states none.",
    )
    slices: int | None = Field(description="Number of slices of the DICOM series; null for other inputs.")
    set_aside: dict[str, int] = Field(
        description="Number of input files that are not part of the scan, by reason: not_dicom, no_volume, duplicate, "
        "damaged_copy, no_image, unreadable, localizer, secondary_capture, projection, reformat, mosaic, colour, "
        "lookup_table, no_position, single_image, other_series, not_selected."
    )
    replaced_voxels: int = Field(
        description="Number of voxels that were fill values: NaN, infinite, of 2147483647 or more in magnitude, or "
        "-32768 where no other value is below -16384. They were set to the lowest value of the others, or to -1024 "
        "where these may be HU."
    )
    cropped_to: list[tuple[int, int]] | None = Field(
        description="First voxel of the segmented region along each axis of the file, and the one after its last, if "
        "the model's manifest asks for a crop; null if the whole scan was segmented."
    )
    channels: list[ChannelReport] = Field(
        default_factory=list, description="The scan of each input channel, in the order of the model."
    )


class CropModelReport(_Part):
    """A model to whose labels the scan was cropped, for the model that was run or for another one that crops."""

    name: str
    version: str
    sha256: str = Field(description="SHA-256 of its networks, as in `model`.")
    manifest_sha256: str = Field(description="SHA-256 of manifest.json.")


class ModelReport(_Part):
    """The model that was run."""

    name: str
    version: str
    sha256: str = Field(description="SHA-256 of model.onnx.")
    manifest_sha256: str = Field(description="SHA-256 of manifest.json.")
    crop_models: list[CropModelReport] = Field(
        default_factory=list, description="The models to whose labels the scan was cropped."
    )


class ChannelOptionsReport(_Part):
    """The options of the request for the scan of one channel."""

    series: str | None = Field(description="SeriesInstanceUID of the series that the request selected.")
    select: dict[str, SelectValue] = Field(
        default_factory=dict, description="Attributes by which the request selected slices of the series."
    )


class OptionsReport(_Part):
    """The options of the request for its input."""

    series: str | None = Field(description="SeriesInstanceUID of the series that the request selected.")
    tolerate: list[Tolerance]
    modality_check: bool
    select: dict[str, SelectValue] = Field(
        default_factory=dict, description="Attributes by which the request selected slices of the series."
    )
    channels: dict[str, ChannelOptionsReport] = Field(
        default_factory=dict, description="Options for each channel, by its name, if the request named a scan for each."
    )


class CentroidReport(_Part):
    """The centroid of a label's voxels, in mm."""

    ras: Point = Field(description="In RAS+ coordinates, as in NIfTI: right, anterior, superior.")
    lps: Point = Field(description="In LPS+ coordinates, as in DICOM: left, posterior, superior.")


class LabelReport(_Part):
    """Statistics of one label on the native grid of the scan."""

    value: int
    name: str
    colour: Rgb | None = Field(
        None,
        description="Red, green and blue, 0 to 255, as in the preview and the DICOM segmentations; null for the "
        "background, 0, and in reports of earlier versions.",
    )
    voxels: int
    volume_ml: float
    intensity_mean: float | None = Field(description="In the scan's unit (HU for CT); null if the label has no voxel.")
    intensity_std: float | None
    bounding_box: list[tuple[int, int]] | None = Field(
        description="First voxel of the label along each axis of the file, and the one after its last; null if the "
        "label has no voxel."
    )
    centroid_mm: CentroidReport | None
    components: int | None = Field(
        description="Number of 26-connected components of the label; null if the mask is so noisy that they were not "
        "counted."
    )


class Report(_Part):
    """The content of `report.json`."""

    service_version: str
    onnxruntime_version: str
    input: InputReport
    options: OptionsReport
    model: ModelReport
    providers: list[str] = Field(description="ONNX Runtime execution providers in use, best first.")
    precision: Precision = Field(description="Precision that the network ran in.")
    windows: int = Field(
        description="Number of windows; with mirroring, the network runs several times for each window."
    )
    labels: list[LabelReport]
    files: list[str] = Field(description="Names of the other files of the result.")
    checksums: dict[str, Checksum] = Field(
        description="SHA-256 and size in bytes of each of these files. The job's row has those of the report, too."
    )
    empty_segments: list[str] = Field(
        description="Labels that are described as segments in a DICOM segmentation but have no voxel in it."
    )
    timings_s: dict[str, float] = Field(description="Seconds of each stage, up to the writing of the mask.")
    warnings: list[ReportWarning] = Field(
        description="Warnings for the user of the mask; the task contract explains their codes, and more may be added."
    )

    def write(self, path: Path) -> None:
        """Writes the report as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
