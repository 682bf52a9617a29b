"""The names of a result's files, and the output format of each."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from inference_service.contract.task_message import OutputFormat

SegmentationType = Literal["binary", "labelmap"]

MASK_FILE = "mask.nii.gz"
REPORT_FILE = "report.json"
PREVIEW_FILE = "preview.png"
RASTER_FILES: Mapping[OutputFormat, str] = {"nrrd": "mask.seg.nrrd", "mha": "mask.mha"}
SEGMENTATION_FILES: Mapping[OutputFormat, tuple[str, SegmentationType]] = {
    "dicom-seg": ("segmentation.dcm", "binary"),
    "dicom-labelmap": ("labelmap.dcm", "labelmap"),
}


def result_files(formats: Sequence[OutputFormat] = get_args(OutputFormat)) -> dict[str, str]:
    """Returns the file names of a result by their keys in the job's row, for some output formats or for all of them.

    >>> result_files(["dicom-seg"])
    {'mask': 'mask.nii.gz', 'report': 'report.json', 'preview': 'preview.png', 'dicom-seg': 'segmentation.dcm'}
    """
    names = {**RASTER_FILES, **{form: name for form, (name, _) in SEGMENTATION_FILES.items()}}
    requested: dict[str, str] = {form: name for form, name in names.items() if form in formats}
    return {"mask": MASK_FILE, "report": REPORT_FILE, "preview": PREVIEW_FILE, **requested}
