"""Synthetic scans as a whole, and the code that all their parts share."""

from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from training.ct_chest import labels
from training.ct_chest.seeds import FIRST_TEST_SEED
from training.ct_chest.synthetic import artery, patient, scanner, spine, surroundings, vessel
from training.ct_chest.synthetic.canvas import Canvas
from training.ct_chest.synthetic.fields import child, smooth_field
from training.ct_chest.synthetic.generator import Example, make_example
from training.ct_chest.synthetic.scanner import Grid, _pad, draw_canvas

# So coarse that an example is drawn in a fraction of a second.
SPACING_MM = (5.0, 5.0, 6.0)
# Coarser still, for tests that do not examine voxels.
COARSE_MM = (9.0, 9.0, 9.0)
SEEDS = range(FIRST_TEST_SEED, FIRST_TEST_SEED + 12)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [make_example(seed, SPACING_MM) for seed in SEEDS]


def middle(example: Example, label: int) -> NDArray[np.float64]:
    """Centre of a label, in voxels along RAS+ axes."""
    places: NDArray[np.float64] = np.argwhere(example.labels == label).mean(axis=0)
    return places


def test_one_seed_gives_one_example() -> None:
    first, again, other = (make_example(seed, SPACING_MM) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.hu, again.hu)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.hu.shape != other.hu.shape or np.any(first.hu != other.hu)


def test_all_labels_of_the_model_occur(examples: list[Example]) -> None:
    found = set(np.unique(np.concatenate([np.unique(example.labels) for example in examples])).tolist())
    assert found == set(range(len(labels.NAMES)))
    assert all(example.hu.dtype == np.int16 and example.labels.shape == example.hu.shape for example in examples)


def test_the_left_lung_is_left_of_the_right_one(examples: list[Example]) -> None:
    both = [
        example
        for example in examples
        if all(np.count_nonzero(example.labels == lung) > 200 for lung in (labels.LUNG_LEFT, labels.LUNG_RIGHT))
    ]
    assert len(both) > len(examples) // 2
    for example in both:
        assert middle(example, labels.LUNG_LEFT)[0] < middle(example, labels.LUNG_RIGHT)[0]


def test_tissues_have_their_ct_numbers(examples: list[Example]) -> None:
    def median(label: int) -> float:
        return float(np.median(np.concatenate([example.hu[example.labels == label] for example in examples])))

    assert -950 < median(labels.LUNG_LEFT) < -500
    assert -950 < median(labels.LUNG_RIGHT) < -500
    assert median(labels.TRACHEA) < -700
    assert -150 < median(labels.BODY) < 120
    assert median(labels.BONE) > median(labels.BODY) + 80
    assert median(labels.BACKGROUND) < -900


def test_bowel_gas_is_body_and_not_lung(examples: list[Example]) -> None:
    gas = sum(np.count_nonzero((example.labels == labels.BODY) & (example.hu < -900)) for example in examples)
    assert gas > 100


def test_padding_is_not_part_of_the_patient(examples: list[Example]) -> None:
    padded = [example for example in examples if example.hu.min() < -1024]
    assert padded
    for example in padded:
        assert not example.labels[example.hu == example.hu.min()].any()


def test_scans_differ_in_extent(examples: list[Example]) -> None:
    heights_mm = [example.hu.shape[2] * SPACING_MM[2] for example in examples]
    assert min(heights_mm) < 200 < 280 < max(heights_mm)


def test_a_ball_is_drawn_at_its_centre_with_its_radius() -> None:
    lines = [np.arange(-20, 20, 2, dtype=np.float32), np.arange(-30, 30, 2, dtype=np.float32)]
    x, y, z = np.meshgrid(lines[0], lines[1], np.arange(0, 30, 3, dtype=np.float32), indexing="ij")
    canvas = Canvas(x, y, z, (2.0, 2.0, 3.0), edge_mm=1.0)
    canvas.blob((4.0, -6.0, 12.0), (8.0, 8.0, 8.0), 50.0, labels.BODY)
    inside = (x - 4) ** 2 + (y + 6) ** 2 + (z - 12) ** 2 < 8**2
    np.testing.assert_array_equal(canvas.labels == labels.BODY, inside)
    assert canvas.hu[inside].mean() > 0 > -900 > canvas.hu[~inside].mean()


def test_smooth_fields_have_unit_spread_and_are_smooth() -> None:
    field = smooth_field(np.random.default_rng(0), (60, 50, 40), (3.0, 3.0, 5.0), 15.0)
    assert field.std() == pytest.approx(1, rel=0.15)
    assert np.abs(np.diff(field, axis=0)).mean() < 0.3 * field.std()


def counted(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[object]:
    """Records the calls of a function without changing its effect."""
    calls: list[object] = []
    draw = getattr(module, name)

    def record(*arguments: object) -> object:
        calls.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(module, name, record)
    return calls


def test_no_disease_is_drawn_in_healthy_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    diseases = {
        artery: ("draw_dissection", "_thrombus", "_round_false_lumen", "_calcium", "_stent"),
        vessel: ("widened", "_tortuous"),
        spine: ("trabecular", "_osteophytes"),
        scanner: ("_unmixed",),
        patient: ("_marrow",),
    }
    calls = {name: counted(monkeypatch, module, name) for module, names in diseases.items() for name in names}
    for seed in range(6):
        make_example(seed, COARSE_MM, healthy=True)
    assert not any(calls.values())
    seed = 0
    while not all(calls.values()):
        make_example(seed, COARSE_MM)
        seed += 1
        assert seed < 40, calls


def test_a_named_generator_depends_on_seed_and_name_alone() -> None:
    first = np.random.default_rng(3)
    later = np.random.default_rng(3)
    later.random(100)
    child(later, "blankets")
    numbers = child(first, "gaps").random(4)
    np.testing.assert_array_equal(numbers, child(later, "gaps").random(4))
    for other in (
        child(first, "blankets"),
        child(np.random.default_rng(4), "gaps"),
        child(child(first, "gaps"), "gaps"),
    ):
        assert not np.any(numbers == other.random(4))


def test_blankets_change_only_the_air_around_the_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = range(12)
    covered = [make_example(seed, COARSE_MM) for seed in seeds]
    monkeypatch.setattr(surroundings, "_blanket", lambda *_: None)
    changed = 0
    for seed, with_blanket in zip(seeds, covered, strict=True):
        without = make_example(seed, COARSE_MM)
        np.testing.assert_array_equal(with_blanket.labels, without.labels)
        around = without.labels == labels.BACKGROUND
        changed += bool(np.any(np.abs(with_blanket.hu[around] - without.hu[around]) > 50))
    assert 0 < changed < 8


def test_padding_may_cut_through_a_patient() -> None:
    grid = Grid((60, 60, 4), (5.0, 5.0, 5.0), (0.0, 0.0, 0.0))
    cut = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        canvas = draw_canvas(rng, grid)
        canvas.labels[:] = labels.BODY
        canvas.hu[:] = 0
        _pad(canvas, grid, rng)
        inside = canvas.labels[20:40, 20:40, 0] == labels.BODY
        np.testing.assert_array_equal(canvas.labels == labels.BACKGROUND, canvas.hu != 0)
        cut += bool(not inside.all())
    assert 1 < cut < 15
