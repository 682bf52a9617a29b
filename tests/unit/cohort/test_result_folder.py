from pathlib import Path
from uuid import uuid4

import pytest

from inference_service.cohort.result_folder import JournalEntry, ResultFolder, open_results
from inference_service.cohort.scan_folder import FolderScan
from inference_service.core.errors import BadRequest

REQUEST = {"model": "ct-tissue"}
SCAN = FolderScan("a", (Path("a.nii"),))


def test_a_job_is_remembered_for_the_same_files(tmp_path: Path) -> None:
    job_id = uuid4()
    with open_results(tmp_path, REQUEST, work_path=None) as results:
        assert results.job_of(SCAN, "f") is None
        results.record(SCAN, JournalEntry("f", job_id))
    with open_results(tmp_path, REQUEST, work_path=None) as results:
        assert results.job_of(SCAN, "f") == job_id
        assert results.job_of(SCAN, "changed") is None
        results.record(SCAN, JournalEntry(None))
    with open_results(tmp_path, REQUEST, work_path=None) as results:
        assert results.job_of(SCAN, "f") is None


def test_one_run_at_a_time_uses_a_folder(tmp_path: Path) -> None:
    with (
        open_results(tmp_path, REQUEST, work_path=None),
        pytest.raises(BadRequest, match="another run is at work"),
        open_results(tmp_path, REQUEST, work_path=None),
    ):
        pass


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    with open_results(tmp_path, REQUEST, work_path=None):
        pass
    with (tmp_path / "scans.jsonl").open("a") as journal:
        journal.write('{"scan": "a", "fingerprint": "f", "job": "none"}\n')
    with pytest.raises(BadRequest, match="damaged"), open_results(tmp_path, REQUEST, work_path=None):
        pass


def write_half(results: ResultFolder) -> None:
    with results.writing(SCAN) as folder:
        folder.mkdir()
        (folder / "mask.nii.gz").write_text("half")
        (folder / "none" / "report.json").write_text("")


def test_a_result_appears_when_it_is_complete(tmp_path: Path) -> None:
    with open_results(tmp_path, REQUEST, work_path=None) as results:
        with pytest.raises(FileNotFoundError):
            write_half(results)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["scans.jsonl"]
        with results.writing(SCAN) as folder:
            folder.mkdir()
            assert not (tmp_path / "a").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "scans.jsonl"]
