"""The served model `ct-tissue`, run by ONNX Runtime alone; `training/ct_tissue` tests the script that writes it."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from inference_service.engine.model_registry import Model, read_model
from inference_service.engine.signature import check_signature

FOLDER = Path(__file__).parents[2] / "models" / "ct-tissue" / "1"
LABELS = ["background", "air", "lung", "fat", "soft_tissue", "bone"]
# The smoothed HU at which one label ends and the next begins, from the model's card.
THRESHOLDS_HU = (-1150, -940, -350, -25, 180)
# The logits of neighbouring labels differ by the distance from the threshold between them, divided by this.
LOGIT_HU = 128
WINDOW = (128, 128, 96)
# Bounds float32 rounding of the logits, as a distance from the threshold.
CLOSE_HU = 0.05


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(FOLDER)


@pytest.fixture(scope="module")
def session(model: Model) -> ort.InferenceSession:
    return ort.InferenceSession(
        model.read_network(model.manifest.networks[0]).network, providers=["CPUExecutionProvider"]
    )


def logits_of(session: ort.InferenceSession, volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Runs one volume of shape WINDOW and returns logits of shape (labels, *WINDOW)."""
    logits: NDArray[np.float32] = session.run(None, {"volume": volume[np.newaxis, np.newaxis]})[0][0]
    return logits


def test_manifest_fits_the_network(model: Model, session: ort.InferenceSession) -> None:
    def free(shape: list[int | str]) -> list[int | None]:
        return [size if isinstance(size, int) else None for size in shape]

    inputs = [free(value.shape) for value in session.get_inputs()]
    (output,) = session.get_outputs()
    check_signature(model.title, model.manifest, inputs, free(output.shape))
    assert inputs[0][0] is None
    assert [label.name for label in model.manifest.labels] == LABELS
    assert [label.value for label in model.manifest.labels] == list(range(6))


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("below", range(5))
def test_label_changes_at_the_threshold_up_to_the_border(session: ort.InferenceSession, below: int, side: int) -> None:
    volume = np.full(WINDOW, THRESHOLDS_HU[below] + side * CLOSE_HU, np.float32)
    logits = logits_of(session, volume)
    assert (logits.argmax(axis=0) == below + (side > 0)).all()
    assert np.ptp(logits.reshape(len(logits), -1), axis=1).max() < 1e-4


@pytest.mark.parametrize(("hu", "label"), [(-3024, 0), (-1000, 1), (-850, 2), (-100, 3), (0, 4), (60, 4), (1500, 5)])
def test_usual_ct_numbers(session: ort.InferenceSession, hu: int, label: int) -> None:
    assert (logits_of(session, np.full(WINDOW, hu, np.float32)).argmax(axis=0) == label).all()


def test_smoothing_spreads_a_voxel_binomially(session: ort.InferenceSession) -> None:
    volume = np.zeros(WINDOW, np.float32)
    volume[40, 50, 60] = 640.0
    logits = logits_of(session, volume)
    smoothed = (logits[5] - logits[4]) * LOGIT_HU + THRESHOLDS_HU[4]
    assert smoothed[40, 50, 60:63] == pytest.approx([80, 40, 0], abs=0.01)
    assert smoothed[39, 51, 61] == pytest.approx(10, abs=0.01)
    assert smoothed.sum() == pytest.approx(640, rel=0.01)


def test_smoothing_suppresses_a_single_noisy_voxel(session: ort.InferenceSession) -> None:
    volume = np.full(WINDOW, 50.0, np.float32)
    volume[40, 50, 60] = 250.0
    assert (logits_of(session, volume).argmax(axis=0) == 4).all()


def test_batch_is_free(session: ort.InferenceSession) -> None:
    volumes = np.stack([np.full((1, *WINDOW), hu, np.float32) for hu in (-1000, 60)])
    labels = session.run(None, {"volume": volumes})[0].argmax(axis=1)
    assert (labels[0] == 1).all()
    assert (labels[1] == 4).all()
