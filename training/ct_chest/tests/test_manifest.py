"""The manifest in the repository agrees with the training."""

from inference_service.contract.intensity import CtIntensity
from inference_service.engine.model_registry import read_model
from training.ct_chest import labels
from training.ct_chest.evaluation.scoring import MODEL
from training.ct_chest.feed import CLIP_HU, INTERPOLATION, MEAN_HU, SPACING_MM, STD_HU, WINDOW
from training.ct_chest.manifest import manifest_text


def test_the_manifest_preprocesses_as_in_training() -> None:
    manifest = read_model(MODEL).manifest
    assert tuple(label.name for label in manifest.labels) == labels.NAMES
    assert [label.value for label in manifest.labels] == list(range(len(labels.NAMES)))
    assert (manifest.spacing_mm, manifest.window, manifest.orientation) == (SPACING_MM, WINDOW, "RAS")
    assert (manifest.interpolation, manifest.separate_axis_above) == (INTERPOLATION, None)
    assert manifest.intensity_before_resampling
    (channel,) = manifest.channels
    assert channel.intensity == CtIntensity(kind="ct", clip=CLIP_HU, mean=MEAN_HU, std=STD_HU)
    assert manifest.padding_value * STD_HU + MEAN_HU == CLIP_HU[0]


def test_the_manifest_in_the_repository_is_the_one_that_the_trainer_writes() -> None:
    network = (MODEL / "model.onnx").read_bytes()
    assert (MODEL / "manifest.json").read_text(encoding="utf-8") == manifest_text(network)
