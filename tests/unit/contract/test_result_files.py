from typing import get_args

from inference_service.contract.result_files import ALL_RESULT_FILES, MASK_FILE, PREVIEW_FILE, REPORT_FILE, result_files
from inference_service.contract.task_message import OutputFormat


def test_every_format_has_a_file_name_of_its_own() -> None:
    assert ALL_RESULT_FILES.keys() == {"mask", "report", "preview", "scan", *get_args(OutputFormat)} - {"nifti"}
    assert len(set(ALL_RESULT_FILES.values())) == len(ALL_RESULT_FILES)


def test_further_files_belong_only_to_the_results_that_were_requested() -> None:
    always = {"mask": MASK_FILE, "report": REPORT_FILE, "preview": PREVIEW_FILE}
    assert result_files(["nifti"]) == always
    assert result_files(["nifti", "mha"]) == {**always, "mha": "mask.mha"}
    assert result_files(["nifti"], scan=True) == {**always, "scan": "scan.nii.gz"}
    assert list(result_files(["mha"], scan=True)) == [*always, "scan", "mha"]
    assert result_files(["nifti", "dicom-labelmap"]) == {**always, "dicom-labelmap": "labelmap.dcm"}
