"""The comparison of an exported network with PyTorch's logits."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolated import runtime_check


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: float) -> None:
    class Broken:
        fixed_batch_size = None

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.where(windows == windows.max(), np.float32(value), windows)

    monkeypatch.setattr(runtime_check, "Session", Broken)
    (tmp_path / "x.onnx").write_bytes(b"x")
    windows = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 1, 3, 4, 5)
    with pytest.raises(ModelInvalid, match="not finite"):
        runtime_check.measure_error(tmp_path / "x.onnx", windows, windows)
