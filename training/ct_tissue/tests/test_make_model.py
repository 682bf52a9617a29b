"""The script writes the model in the repository, byte for byte."""

from pathlib import Path

import numpy as np
import pytest

from training.ct_tissue import make_model


def test_the_files_in_the_repository_are_those_of_the_script() -> None:
    network = make_model.network_bytes()
    assert (make_model.FOLDER / "model.onnx").read_bytes() == network
    assert (make_model.FOLDER / "manifest.json").read_text(encoding="utf-8") == make_model.manifest_text(network)


def test_main_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = make_model.FOLDER
    monkeypatch.setattr(make_model, "FOLDER", tmp_path)
    make_model.main()
    for name in ("model.onnx", "manifest.json"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_weights_are_exact_in_bfloat16() -> None:
    for array in (make_model.smoothing_kernel(), make_model.logit_weights()[0]):
        assert not (array.view(np.uint32) & 0xFFFF).any()
