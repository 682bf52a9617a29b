import csv
import io
from types import SimpleNamespace
from typing import cast

from inference_service.contract.report import LabelReport, Report
from inference_service.contract.results_table import COLUMNS, failure_row, label_rows, write_table


def report(*labels: LabelReport) -> Report:
    return cast(Report, SimpleNamespace(labels=labels))


def label(value: int, name: str, volume_ml: float, mean: float | None, std: float | None) -> LabelReport:
    return LabelReport(
        value=value,
        name=name,
        voxels=1,
        volume_ml=volume_ml,
        intensity_mean=mean,
        intensity_std=std,
        bounding_box=None,
        centroid_mm=None,
        components=None,
    )


def test_the_table_has_a_row_for_each_scan_and_label() -> None:
    stream = io.StringIO()
    found = report(label(1, "lung, left", 1023.25, -810.5, 161.0), label(2, "lung_right", 0.0, None, None))
    write_table(stream, [*label_rows("case_1", found), failure_row("Müller", "missing_slices")])
    assert stream.getvalue() == (
        "scan,label,label_name,volume_ml,intensity_mean,intensity_std,error_code\n"
        'case_1,1,"lung, left",1023.25,-810.5,161.0,\n'
        "case_1,2,lung_right,0.0,,,\n"
        "Müller,,,,,,missing_slices\n"
    )


def test_no_text_is_a_formula() -> None:
    stream = io.StringIO()
    write_table(stream, label_rows("=HYPERLINK(1)", report(label(1, "@x", 1.0, -5.0, 0.0))))
    rows = list(csv.reader(io.StringIO(stream.getvalue())))
    assert rows == [list(COLUMNS), ["'=HYPERLINK(1)", "1", "'@x", "1.0", "-5.0", "0.0", ""]]
