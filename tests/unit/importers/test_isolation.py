"""The process that reads a source imports nothing of the folder in which the command was called."""

from pathlib import Path

import pytest

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolation import run_task


def test_modules_of_the_working_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command may be called in the folder of a hostile source."""
    (tmp_path / "json.py").write_text("open('ran', 'w')\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelInvalid, match="there is no action unknown"):
        run_task("unknown", {}, scratch)
    assert not (tmp_path / "ran").exists()
