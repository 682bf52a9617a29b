"""The served model `ct-chest`, run by the service; `training/ct_chest/tests` measures its accuracy."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from inference_service.core.execution import ExecutionOptions
from inference_service.embedded.phantom import chest_phantom
from inference_service.engine.model_registry import read_model
from inference_service.engine.session_cache import load_model
from inference_service.segmentation.labels.postprocessing import postprocess
from inference_service.segmentation.loaded_networks import loaded_networks
from inference_service.segmentation.volume_segmentation import segment_volume

MODEL = Path(__file__).parents[2] / "models" / "ct-chest" / "1"
LARGEST_NETWORK_BYTES = 8 * 2**20
LUNG_LEFT = 1
LUNG_RIGHT = 2
BODY = 5


def test_labels_are_those_in_the_card() -> None:
    names = {label.value: label.name for label in read_model(MODEL).manifest.labels}
    assert names == {0: "background", 1: "lung_left", 2: "lung_right", 3: "trachea", 4: "bone", 5: "body"}


@pytest.mark.parametrize(("ml", "stays"), [(40, True), (20, True), (18, False)])
def test_a_lung_keeps_a_part_that_is_not_much_smaller_than_the_other(ml: int, stays: bool) -> None:
    mask = np.full((12, 12, 20), BODY, np.uint8, order="F")
    mask[1:6, 1:5, 1:6] = LUNG_LEFT
    part = (slice(8, 10), 1, slice(0, ml // 2))
    for value in (LUNG_LEFT, LUNG_RIGHT):
        # A label with a single component keeps it.
        mask[part] = value
        cleaned = mask.copy(order="F")
        postprocess(cleaned, read_model(MODEL).manifest.postprocessing, voxel_volume_ml=1.0)
        kept = stays or value == LUNG_RIGHT
        assert set(np.unique(cleaned[part])) == {value if kept else BODY}


def test_network_is_small_and_matches_the_hash_in_the_manifest() -> None:
    model = read_model(MODEL)
    (network,) = model.manifest.networks
    assert len(model.read_network(network).network) < LARGEST_NETWORK_BYTES


def test_both_lungs_of_a_phantom_are_found() -> None:
    """Each lung is found on its side and is mostly air; the phantom is not part of the training data."""
    phantom = chest_phantom((170, 170, 60), (2.4, 2.4, 5.0))
    model = read_model(MODEL)
    loaded = load_model(model, ExecutionOptions(("CPUExecutionProvider",), threads=2))
    mask = segment_volume([phantom], model.manifest, loaded_networks(loaded, 1), max_voxels=2**24).mask
    inside = (phantom.voxels.astype(np.int16) > -950) & (phantom.voxels.astype(np.int16) < -700)
    patient = ndimage.binary_erosion(ndimage.binary_fill_holes(mask > 0), iterations=4)
    assert np.isin(mask, (LUNG_LEFT, LUNG_RIGHT))[inside & patient].mean() > 0.97
    for label, low_x in ((LUNG_LEFT, False), (LUNG_RIGHT, True)):
        found = mask == label
        assert found.sum() * phantom.voxel_volume_ml > 800
        # Vessels and walls of the lungs are denser.
        assert inside[found].mean() > 0.75
        assert inside[ndimage.binary_erosion(found)].mean() > 0.85
        # The first axis runs to the left.
        assert ((np.argwhere(found)[:, 0] < 85) == low_x).mean() > 0.97
