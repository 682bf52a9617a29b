"""All sections of the evaluation are computed with the requested model."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inference_service.embedded.phantom import chest_phantom
from inference_service.engine.session_cache import LoadedModel
from inference_service.imaging.geometry import Volume
from training.ct_chest import evaluate
from training.ct_chest.evaluation import real, scoring
from training.ct_chest.labels import NAMES
from training.ct_chest.seeds import FIRST_HELD_BACK_SEED, FIRST_TEST_SEED

SHAPE = (20, 22, 24)


def pattern(shape: tuple[int, ...], values: int) -> NDArray[np.uint8]:
    """An array in which all values occur many times."""
    mixed: NDArray[np.uint8] = (7 * np.indices(shape).sum(axis=0) % values).astype(np.uint8)
    return mixed


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Collects the folders of the models used; scans are tiny, and the masks a fixed pattern."""
    folders: set[Path] = set()

    def segment(volume: Volume, folder: Path = scoring.MODEL) -> NDArray[np.uint8]:
        folders.add(folder)
        return pattern(volume.voxels.shape, len(NAMES))

    tiny = Volume(pattern(SHAPE, 117).astype(np.int16), np.diag([3.0, 3.0, 4.0, 1.0]))
    for module in (scoring, real):
        monkeypatch.setattr(module, "segment", segment)
    monkeypatch.setattr(scoring, "_SPACINGS", ((9.0, 9.0, 9.0),))
    monkeypatch.setattr(scoring, "chest_phantom", lambda *_: chest_phantom((20, 20, 10), (10.0, 10.0, 15.0)))
    monkeypatch.setattr(real, "reference_lungs", lambda voxels, _: pattern(voxels.shape, 3))
    monkeypatch.setattr(evaluate, "_read", lambda _: tiny)
    monkeypatch.setattr(evaluate, "read_series", lambda _: tiny)
    return folders


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--healthy", "2", "--diseased", "1", *arguments])
    evaluate.main()


@pytest.mark.parametrize("other", [False, True])
def test_every_section_evaluates_the_requested_model(
    other: bool,
    requested: set[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "ct-chest" / "1" if other else scoring.MODEL
    if other:
        shutil.copytree(scoring.MODEL, folder)
    load = scoring._loaded

    def loaded(which: Path) -> LoadedModel:
        requested.add(which)
        return load(which)

    monkeypatch.setattr(scoring, "_loaded", loaded)
    run(monkeypatch, "--data", "none", *(["--model", str(folder)] if other else []))
    assert requested == {folder}
    printed = capsys.readouterr().out
    seeds = {int(seed) for seed in re.findall(r"seed (\d+) ", printed)}
    first = FIRST_HELD_BACK_SEED + 1000 if other else FIRST_TEST_SEED
    assert seeds == {first, first + 1}
    for name in ("body, mean of 2", "body, mean of 1", "all, s", "slab, on the correct side", "recall of hip bones"):
        assert f"  {name}: " in printed
    assert len(re.findall("axes .* flipped", printed)) == 48


def test_without_real_scans_only_the_synthetic_ones_are_evaluated(
    requested: set[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    assert requested == {scoring.MODEL}
    assert "axes" not in capsys.readouterr().out


def test_the_models_folder_is_recognised_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scoring.MODEL.parents[1])
    assert scoring.first_seed(Path("ct-chest/1")) == scoring.first_seed(scoring.MODEL) == FIRST_TEST_SEED
    assert scoring.first_seed(tmp_path) >= FIRST_HELD_BACK_SEED
