"""The check of an installed model on noise."""

from collections.abc import Callable, Sequence

import pytest

from inference_service.contract.manifest import Manifest
from inference_service.segmentation.model_checks import _noise
from inference_service.segmentation.preparation.preprocessing import preprocess


@pytest.mark.parametrize("orientation", ["RAS", "SPL", "kji", "jki"])
@pytest.mark.parametrize(
    ("window", "spacing", "expected"),
    [
        ((5, 4, 3), (1.5, 1, 2), (5, 4, 3)),
        ((None, 4, None), (1, None, 2), (64, 4, 64)),
    ],
)
def test_noise_fills_a_window_of_the_network(
    make_manifest: Callable[..., Manifest],
    orientation: str,
    window: Sequence[int | None],
    spacing: Sequence[float | None],
    expected: tuple[int, ...],
) -> None:
    channels = [{"name": name, "intensity": {"kind": "none"}} for name in ("CT", "PET")]
    manifest = make_manifest(orientation=orientation, window=window, spacing_mm=spacing, channels=channels)
    assert preprocess(_noise(manifest), manifest, max_voxels=10**6).image.shape == (2, *expected)
