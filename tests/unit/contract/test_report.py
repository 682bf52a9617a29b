import json
from pathlib import Path

import jsonschema
import numpy as np

from inference_service.contract.report import (
    CentroidReport,
    InputReport,
    LabelReport,
    ModelReport,
    OptionsReport,
    Report,
)
from inference_service.core.files import Checksum
from inference_service.core.report_warnings import ReportWarning, WarningCode


def test_a_report_matches_its_schema(tmp_path: Path) -> None:
    label = LabelReport(
        value=0,
        name="leber é",
        colour=(230, 159, 0),
        voxels=8,
        volume_ml=0.008,
        intensity_mean=None,
        intensity_std=None,
        bounding_box=[(0, 2), (1, 3), (0, 2)],
        centroid_mm=CentroidReport(ras=(1, 2, 3), lps=(-1, -2, 3)),
        components=None,
    )
    report = Report(
        service_version="1",
        onnxruntime_version="1.2.3",
        options=OptionsReport(series=None, tolerate=["gantry_tilt"], modality_check=True),
        input=InputReport(
            kind="nifti",
            sha256="0" * 64,
            shape=(2, 3, 4),
            spacing_mm=(1, 2, 3),
            orientation="LPS",
            affine=np.eye(4).tolist(),
            modality=None,
            slices=None,
            set_aside={},
            replaced_voxels=0,
            cropped_to=None,
        ),
        model=ModelReport(name="test", version="1", sha256="0" * 64, manifest_sha256="1" * 64),
        providers=["CPUExecutionProvider"],
        precision="fp32",
        windows=4,
        labels=[label],
        files=["mask.nii.gz"],
        checksums={"mask.nii.gz": Checksum("0" * 64, 7)},
        empty_segments=[],
        timings_s={"read": 0.5},
        warnings=[ReportWarning(WarningCode.SINGLE_SLICE, "the scan is a single slice")],
    )
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_bytes())
    jsonschema.validate(written, Report.model_json_schema())
    assert written["labels"][0]["intensity_mean"] is None
    assert written["warnings"] == [{"code": "single_slice", "message": "the scan is a single slice"}]
    assert Report.model_validate_json((tmp_path / "report.json").read_bytes()) == report
    del written["labels"][0]["colour"]  # as in reports of earlier versions
    assert Report.model_validate(written).labels == [label.model_copy(update={"colour": None})]
