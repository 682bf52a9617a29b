"""Stored examples, the windows drawn from them, and the learning rate."""

from pathlib import Path

import numpy as np
import pytest

from inference_service.imaging import resampling
from training.ct_chest import pool, schedule, windows
from training.ct_chest.feed import CLIP_HU, MEAN_HU, STD_HU, WINDOW
from training.ct_chest.synthetic.scanner import draw_spacing


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of one stored example."""
    (path,) = pool.make_pool(tmp_path_factory.mktemp("pool"), [3], 1)
    return path


def test_spacings_range_from_fine_planes_to_thick_slices() -> None:
    drawn = np.array([draw_spacing(np.random.default_rng(seed)) for seed in range(2000)])
    assert drawn[:, 0].min() < 0.65
    assert drawn[:, 2].min() < 0.8
    assert drawn[:, 2].max() > 4.9
    # A scan never has hundreds of millions of voxels.
    assert np.prod(drawn, axis=1).min() > 1


def test_some_windows_are_cut_to_slabs(example: Path) -> None:
    rng = np.random.default_rng(0)
    air = (CLIP_HU[0] - MEAN_HU) / STD_HU
    thinnest = []
    for _ in range(60):
        volume, shares = windows.draw_window(example, rng)
        assert volume.shape == shares.first.shape == WINDOW
        padded = volume == np.float32(air)
        outside = [padded.all(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
        thinnest.append(min(np.count_nonzero(~planes) for planes in outside))
        # Voxels outside of the scan have no label.
        for axis, planes in enumerate(outside):
            assert not shares.first.compress(planes, axis).any()
    assert min(thinnest) < 40 < np.median(thinnest) == max(thinnest)


@pytest.mark.parametrize("axis", range(3))
def test_a_coarser_scan_averages_over_its_voxels(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 5 mm average two planes of the network; pixels of 2.5 mm change no values in the plane."""
    monkeypatch.setattr(windows, "_COARSE_PLANE_MM", (2.5, 2.5))
    monkeypatch.setattr(windows, "_COARSE_SLICES_MM", (5.0, 5.0))
    rng = np.random.default_rng(0)
    stripes = np.where(np.indices((8, 10, 12))[axis] % 2, 100, -50).astype(np.float32)
    seen = windows._coarsened(stripes, rng)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, 25 if axis == 2 else stripes, atol=1e-3)
    ramp = np.indices((8, 10, 12))[axis].astype(np.float32)
    inside = (slice(1, -1),) * 3
    np.testing.assert_allclose(windows._coarsened(ramp, rng)[inside], ramp[inside], atol=1e-3)


def test_a_coarsened_window_keeps_its_labels(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_CUT", 0.0)
    monkeypatch.setattr(windows, "_vary", lambda hu, _: None)
    sharpness = []
    for often in (0.0, 1.0):
        monkeypatch.setattr(windows, "_COARSE", often)
        rng = np.random.default_rng(1)
        volume, shares = windows.draw_window(example, rng)
        sharpness.append((float(np.abs(np.diff(volume, axis=2)).mean()), shares))
    (fine, before), (coarse, after) = sharpness
    assert coarse < 0.95 * fine
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_examples_of_another_generator_are_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pool.pool_folder(tmp_path)
    assert folder == pool.pool_folder(tmp_path)
    assert folder.parent == tmp_path
    monkeypatch.setattr(pool, "_DRAWN_BY", pool._DRAWN_BY[1:])
    other = pool.pool_folder(tmp_path)
    assert other != folder
    edited = tmp_path / "resampling.py"
    edited.write_text("# edited")
    monkeypatch.setattr(resampling, "__file__", str(edited))
    assert pool.pool_folder(tmp_path) not in (folder, other)


def test_the_learning_rate_falls_in_every_cycle() -> None:
    rates = [schedule.rate(step) for step in range(schedule.STEPS)]
    assert min(rates) > 0
    begins = 0
    for cycle in schedule.CYCLES:
        of_cycle = rates[begins : begins + cycle.steps]
        assert of_cycle[0] < 0.03 * cycle.highest
        assert 0.98 * cycle.highest < max(of_cycle) < cycle.highest
        assert of_cycle[cycle.steps // 2] == pytest.approx(cycle.highest / 2)
        assert of_cycle[-1] < 1e-5
        begins += cycle.steps
    assert begins == schedule.STEPS
    assert begins - schedule.CYCLES[-1].steps == schedule.LAST_CYCLE_BEGINS
    assert max(cycle.highest for cycle in schedule.CYCLES) == schedule.CYCLES[0].highest
    for step in (-1, schedule.STEPS):
        with pytest.raises(ValueError, match=f"got {step}"):
            schedule.rate(step)
