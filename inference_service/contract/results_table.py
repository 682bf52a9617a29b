"""The table of several results, `results.csv`: one row for each scan and label, and one for each scan that failed.

It is in long form, like the tables of pyradiomics and TotalSegmentator: models with other labels have the same columns.
"""

import csv
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeAlias

from pydantic import BaseModel

from inference_service.contract.report import Report

COLUMNS = ("scan", "label", "label_name", "volume_ml", "intensity_mean", "intensity_std", "error_code")
Row: TypeAlias = tuple[str | int | float | None, ...]

# A spreadsheet takes a text that begins so for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class LabelFigures(BaseModel):
    """The columns of a label in a report."""

    value: int
    name: str
    volume_ml: float
    intensity_mean: float | None
    intensity_std: float | None


class ReportFigures(BaseModel):
    """The part of a report that the table needs: reports of other versions have it, too."""

    labels: list[LabelFigures]


def label_rows(scan: str, report: Report | ReportFigures) -> Iterator[Row]:
    """Yields a row for each label of a result; a label without a voxel has a volume of 0 and no intensity."""
    for label in report.labels:
        yield scan, label.value, label.name, label.volume_ml, label.intensity_mean, label.intensity_std, None


def failure_row(scan: str, code: str) -> Row:
    """Returns the row of a scan without a result.

    >>> failure_row("case_7", "missing_slices")
    ('case_7', None, None, None, None, None, 'missing_slices')
    """
    return scan, None, None, None, None, None, code


def write_table(stream: TextIO, rows: Iterable[Row]) -> None:
    """Writes rows as CSV below a line with the columns.

    Args:
        stream: Opened with `newline=""`.
        rows: The rows.
    """
    write_rows(stream, [COLUMNS])
    write_rows(stream, rows)


def write_rows(stream: TextIO, rows: Iterable[Row]) -> None:
    """Writes further rows; an apostrophe precedes a text that could be a formula."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([_plain(cell) for cell in row] for row in rows)


def _plain(cell: str | int | float | None) -> str | int | float | None:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell
