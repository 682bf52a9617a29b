import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from inference_service.engine.model_registry import Model, check_signature, read_model

FOLDER = Path(__file__).parents[2] / "models" / "ct-tissue" / "1"

# Bounds float32 rounding of the logits, as a distance from the threshold.
CLOSE_HU = 0.05


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_model", FOLDER / "make_model.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"no module at {FOLDER}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = load_maker()


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(FOLDER)


@pytest.fixture(scope="module")
def session(model: Model) -> ort.InferenceSession:
    return ort.InferenceSession(model.read_network(), providers=["CPUExecutionProvider"])


def logits_of(session: ort.InferenceSession, volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Runs one volume of shape MAKER.WINDOW; gives (labels, *window)."""
    logits: NDArray[np.float32] = session.run(None, {"volume": volume[np.newaxis, np.newaxis]})[0][0]
    return logits


def test_files_are_what_the_script_makes() -> None:
    network = MAKER.network_bytes()
    assert (FOLDER / "model.onnx").read_bytes() == network
    assert (FOLDER / "manifest.json").read_text(encoding="utf-8") == MAKER.manifest_text(network)


def test_main_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAKER, "__file__", str(tmp_path / "make_model.py"))
    MAKER.main()
    for name in ("model.onnx", "manifest.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_manifest_fits_the_network(model: Model, session: ort.InferenceSession) -> None:
    def free(shape: list[int | str]) -> list[int | None]:
        return [size if isinstance(size, int) else None for size in shape]

    inputs = [free(value.shape) for value in session.get_inputs()]
    check_signature(model.manifest, inputs, [free(value.shape) for value in session.get_outputs()])
    assert inputs[0][0] is None
    assert [label.name for label in model.manifest.labels] == list(MAKER.LABELS)
    assert [label.value for label in model.manifest.labels] == list(range(6))


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("below", range(5))
def test_label_changes_at_the_threshold_up_to_the_border(session: ort.InferenceSession, below: int, side: int) -> None:
    volume = np.full(MAKER.WINDOW, MAKER.THRESHOLDS_HU[below] + side * CLOSE_HU, np.float32)
    logits = logits_of(session, volume)
    assert (logits.argmax(axis=0) == below + (side > 0)).all()
    assert np.ptp(logits.reshape(len(logits), -1), axis=1).max() < 1e-4


@pytest.mark.parametrize(("hu", "label"), [(-3024, 0), (-1000, 1), (-850, 2), (-100, 3), (0, 4), (60, 4), (1500, 5)])
def test_usual_ct_numbers(hu: int, label: int) -> None:
    weights, biases = MAKER.logit_weights()
    assert (weights.ravel() * hu + biases).argmax() == label


def test_weights_are_exact_in_bfloat16() -> None:
    for array in (MAKER.smoothing_kernel(), MAKER.logit_weights()[0]):
        assert not (array.view(np.uint32) & 0xFFFF).any()


def test_smoothing_spreads_a_voxel_binomially(session: ort.InferenceSession) -> None:
    volume = np.zeros(MAKER.WINDOW, np.float32)
    volume[40, 50, 60] = 640.0
    logits = logits_of(session, volume)
    smoothed = (logits[5] - logits[4]) * MAKER.LOGIT_HU + MAKER.THRESHOLDS_HU[4]
    assert smoothed[40, 50, 60:63] == pytest.approx([80, 40, 0], abs=0.01)
    assert smoothed[39, 51, 61] == pytest.approx(10, abs=0.01)
    assert smoothed.sum() == pytest.approx(640, rel=0.01)


def test_smoothing_lets_a_lone_noisy_voxel_through_to_no_label(session: ort.InferenceSession) -> None:
    volume = np.full(MAKER.WINDOW, 50.0, np.float32)
    volume[40, 50, 60] = 250.0
    assert (logits_of(session, volume).argmax(axis=0) == 4).all()


def test_batch_is_free(session: ort.InferenceSession) -> None:
    volumes = np.stack([np.full((1, *MAKER.WINDOW), hu, np.float32) for hu in (-1000, 60)])
    labels = session.run(None, {"volume": volumes})[0].argmax(axis=1)
    assert (labels[0] == 1).all()
    assert (labels[1] == 4).all()
