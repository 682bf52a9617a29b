"""Neither errors nor logs quote values of a file."""

import logging
import re
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from dicom_files import (
    PATIENT,
    PATIENT_ID,
    regular_stack,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.valuerep import DS

from inference_service.core.errors import (
    InputCorrupt,
    NotAVolume,
)
from inference_service.formats.dicom.pydicom_errors import map_pydicom_errors
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]


def test_a_traceback_quotes_no_value(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack())
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(path.read_bytes().replace(b"-30.5", b"SENT^"))
    with pytest.raises(InputCorrupt) as caught:
        read(tmp_path / "in")
    assert "SENT" not in "".join(traceback.format_exception(caught.value))


def test_errors_of_pydicom_are_mapped_without_their_text() -> None:
    with pytest.raises(InputCorrupt, match="the sentence") as caught, map_pydicom_errors("the sentence"):
        DS("SENT^")
    text = "".join(traceback.format_exception(caught.value))
    assert "SENT" not in text.replace('DS("SENT^")', "")
    assert "ValueError" in text


def test_messages_logs_and_values_hold_no_patient_data(
    tmp_path: Path, read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def change(k: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = None
        dataset.add_new("ImageComments", "LT", f"{PATIENT} {PATIENT_ID}")

    write_series(tmp_path / "in", regular_stack(), change=change)
    with pytest.raises(NotAVolume) as caught:
        read(tmp_path / "in")
    text = caught.value.message + caplog.text
    shutil.rmtree(tmp_path / "in")
    write_series(tmp_path / "in", regular_stack())
    # Addresses of objects, and hashes of texts, hold any digits.
    text += re.sub(r" at 0x[0-9a-f]+|-?\d\.\d+e\+\d+", "", repr(read(tmp_path / "in"))) + caplog.text
    for secret in ("Mueller", "4711", "19610203", "0815"):
        assert secret not in text.replace("1.2.3.4", "")
