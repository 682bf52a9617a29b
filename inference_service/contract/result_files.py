"""The names of a result's files, and the output format of each."""

from collections.abc import Collection, Mapping
from typing import Literal, get_args

from inference_service.contract.task_message import OutputFormat

SegmentationType = Literal["binary", "labelmap"]

MASK_FILE = "mask.nii.gz"
REPORT_FILE = "report.json"
PREVIEW_FILE = "preview.png"
SCAN_FILE = "scan.nii.gz"
RASTER_FILES: Mapping[OutputFormat, str] = {"nrrd": "mask.seg.nrrd", "mha": "mask.mha"}
SEGMENTATION_FILES: Mapping[OutputFormat, tuple[str, SegmentationType]] = {
    "dicom-seg": ("segmentation.dcm", "binary"),
    "dicom-labelmap": ("labelmap.dcm", "labelmap"),
}


def result_files(formats: Collection[OutputFormat], *, scan: bool = False) -> dict[str, str]:
    """Returns the file names of a result by their keys in the job's row.

    Args:
        formats: Formats of the mask.
        scan: Whether the scan is stored, too.

    >>> result_files(["dicom-seg"])
    {'mask': 'mask.nii.gz', 'report': 'report.json', 'preview': 'preview.png', 'dicom-seg': 'segmentation.dcm'}
    """
    names = {**RASTER_FILES, **{form: name for form, (name, _) in SEGMENTATION_FILES.items()}}
    requested: dict[str, str] = {form: name for form, name in names.items() if form in formats}
    always = {"mask": MASK_FILE, "report": REPORT_FILE, "preview": PREVIEW_FILE}
    return {**always, "scan": SCAN_FILE, **requested} if scan else {**always, **requested}


ALL_RESULT_FILES: Mapping[str, str] = result_files(get_args(OutputFormat), scan=True)
"""The file names of all that a result may have, by their keys in the job's row."""
