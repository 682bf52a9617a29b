import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from manifests import VALID_MANIFEST

from inference_service.core.settings import Settings
from inference_service.engine.model_registry import read_model
from inference_service.jobs.workers.worker_registry import InstalledModel
from inference_service.worker.model_summaries import SummaryReader


@pytest.fixture
def reader(tmp_path: Path) -> SummaryReader:
    return SummaryReader(Settings(_env_file=None, models_path=tmp_path), tmp_path, nullcontext())


def install(models_path: Path, version: str, **fields: object) -> InstalledModel:
    folder = models_path / "ct-lung" / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({**VALID_MANIFEST, "version": version, **fields}))
    return InstalledModel("ct-lung", version, read_model(folder).manifest_sha256)


def test_each_manifest_is_read_once(reader: SummaryReader, tmp_path: Path) -> None:
    first, second = install(tmp_path, "1"), install(tmp_path, "2", description="Better lungs.")
    found = reader.read([first, second])
    assert [found[each.manifest_sha256].description for each in (first, second)] == ["Lungs.", "Better lungs."]
    (tmp_path / "ct-lung" / "1" / "manifest.json").unlink()
    assert reader.read([first, second]) == found
    assert reader.read([second]).keys() == {second.manifest_sha256}


def test_a_model_that_was_replaced_has_no_summary_until_it_is_listed_again(
    reader: SummaryReader, tmp_path: Path
) -> None:
    listed = install(tmp_path, "1")
    replaced = install(tmp_path, "1", description="Other lungs.")
    assert reader.read([listed]) == {}
    assert reader.read([replaced])[replaced.manifest_sha256].description == "Other lungs."
