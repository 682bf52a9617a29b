from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from ct_chest import abdomen, generator, labels, pool, ribs, schedule, spine, surroundings, vessel, windows
from ct_chest.canvas import Canvas, Point
from ct_chest.feed import CLIP_HU, MEAN_HU, STD_HU, WINDOW
from ct_chest.fields import child, smooth_field
from ct_chest.generator import Example, make_example
from ct_chest.patient import Surfaces, draw_patient
from ct_chest.ribs import straightened
from ct_chest.scanner import Grid, _pad, draw_canvas, draw_spacing
from ct_chest.seeds import FIRST_TEST_SEED
from ct_chest.skeleton import Skeleton
from ct_chest.spine import draw_spine
from ct_chest.trunk import draw_trunk
from ct_chest.vessel import draw_abdominal_branches, draw_dissection, draw_vessel, widened
from inference_service import resample

# Coarse enough that one takes a fraction of a second.
SPACING_MM = (5.0, 5.0, 6.0)
# Coarser still, where what is drawn is not looked at.
COARSE_MM = (9.0, 9.0, 9.0)
SEEDS = range(FIRST_TEST_SEED, FIRST_TEST_SEED + 12)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [make_example(seed, SPACING_MM) for seed in SEEDS]


def middle(example: Example, label: int) -> NDArray[np.float64]:
    """The middle of a label, voxels: to the right, to the front, to the head."""
    places: NDArray[np.float64] = np.argwhere(example.labels == label).mean(axis=0)
    return places


def test_one_seed_gives_one_example() -> None:
    first, again, other = (make_example(seed, SPACING_MM) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.hu, again.hu)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.hu.shape != other.hu.shape or np.any(first.hu != other.hu)


def test_labels_are_the_models_and_all_occur(examples: list[Example]) -> None:
    found = set(np.unique(np.concatenate([np.unique(example.labels) for example in examples])).tolist())
    assert found == set(range(len(labels.NAMES)))
    assert all(example.hu.dtype == np.int16 and example.labels.shape == example.hu.shape for example in examples)


def test_left_is_left(examples: list[Example]) -> None:
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


def test_padding_is_no_part_of_the_patient(examples: list[Example]) -> None:
    padded = [example for example in examples if example.hu.min() < -1024]
    assert padded
    for example in padded:
        assert not example.labels[example.hu == example.hu.min()].any()


def test_scans_differ_in_extent(examples: list[Example]) -> None:
    heights_mm = [example.hu.shape[2] * SPACING_MM[2] for example in examples]
    assert min(heights_mm) < 200 < 280 < max(heights_mm)


def test_a_ball_is_drawn_where_it_belongs() -> None:
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


def test_an_artery_and_what_ails_it_are_body_and_not_bone() -> None:
    lines = np.arange(-30, 30, 1.5, dtype=np.float32)
    x, y, z = np.meshgrid(lines, lines, lines, indexing="ij")
    patient = replace(draw_patient(np.random.default_rng(0)), aorta=350.0, blood=45.0)
    bright, wide, mixed = 0, 0, 0
    for seed in range(60):
        canvas = Canvas(x, y, z, (1.5, 1.5, 1.5), edge_mm=1.0)
        draw_vessel(canvas, [(0, 0, -60), (0, 0, 60)], [10, 10], patient, np.random.default_rng(seed))
        inside, around = x**2 + y**2 < 7**2, x**2 + y**2 > 12**2
        assert np.all(canvas.labels[inside] == labels.BODY)
        assert set(np.unique(canvas.labels)) == {labels.BACKGROUND, labels.BODY}
        bright += bool(np.any(canvas.hu > 600))
        wide += bool(np.count_nonzero(canvas.labels[around]) > 1000)
        mixed += bool(np.any(np.abs(canvas.hu[inside] - 350) > 30))
    # Calcium or a stent in some, a clot around the channel in a few, a second channel or calcium far inside in half.
    assert 10 < bright < 50
    assert 2 < wide < 30
    assert 20 < mixed < 48


def test_a_dissection_has_two_channels_with_a_flap_between() -> None:
    lines = np.arange(-30, 30, 1.5, dtype=np.float32)
    x, y, z = np.meshgrid(lines, lines, lines, indexing="ij")
    canvas = Canvas(x, y, z, (1.5, 1.5, 1.5), edge_mm=1.0)
    points: list[Point] = [(0, 0, -60), (0, 0, 0), (0, 0, 60)]
    canvas.tube(points, [10] * 3, 350.0, labels.BODY)
    draw_dissection(canvas, points, [10] * 3, (150.0, -50.0), np.random.default_rng(1))
    for half in (z < -9, z > 9):
        inside = canvas.hu[(x**2 + y**2 < 8**2) & half]
        counts = [np.count_nonzero(np.abs(inside - hu) < 60) for hu in (350, 150, -50)]
        assert min(counts[:2]) > 0.08 * inside.size
        assert 0 < counts[2] < 0.3 * inside.size
    assert set(np.unique(canvas.labels)) == {labels.BACKGROUND, labels.BODY}


def test_some_aortas_are_widened_and_none_narrowed() -> None:
    points: list[Point] = [(0, 0, 0), (0, 0, 30), (0, 0, 60), (0, 0, 330)]
    radii = [12.0, 11.0, 10.0, 9.0]
    ratios = np.array([np.divide(widened(points, radii, np.random.default_rng(seed)), radii) for seed in range(200)])
    assert 30 < np.count_nonzero(ratios.max(axis=1) > 1) < 70
    assert ratios.min() == 1
    assert 1.6 < ratios.max() < 1.8
    # Some in one place, some all along.
    assert np.count_nonzero(np.ptp(ratios[ratios.max(axis=1) > 1], axis=1) > 0.3) > 10


@pytest.mark.parametrize("sound", [True, False])
def test_the_aorta_lies_whole_beside_the_spine_and_then_in_front_of_it(
    sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Canvas, list[Point], list[float]]] = []

    def record(canvas: Canvas, points: list[Point], radii: list[float], *_: object) -> None:
        drawn.append((canvas, points, radii))
        canvas.tube(points, radii, 300.0, labels.BODY)

    monkeypatch.setattr(vessel, "draw_vessel", record)
    monkeypatch.setattr(generator, "expose", lambda *_, **__: None)
    shares, to_the_left = [], []
    for seed in range(8):
        del drawn[:]
        make_example(seed, (3.0, 3.0, 4.0), abdominal=True, sound=sound)
        _, (canvas, points, radii), *iliac = drawn
        assert len(iliac) == 2
        inside = np.zeros(canvas.shape, np.bool_)
        for _, distance, box in canvas.cones(points, radii):
            inside[box] |= (distance < 0) & (canvas.z[box] < -120)
        shares.append(float(np.mean(canvas.labels[inside] == labels.BONE)))
        assert np.count_nonzero(inside) > 300
        to_the_left.append([point[0] for point in points])
    # Edges, and lips of vertebrae.
    assert np.median(shares) < 0.03
    assert max(shares) < 0.08
    upper, lowest = np.array(to_the_left)[:, 1], np.array(to_the_left)[:, -1]
    assert upper.max() < -18
    assert np.abs(lowest).max() < 25
    assert np.median(np.abs(lowest)) < 12


def test_abdominal_vessels_wind_below_the_diaphragm_and_spare_bone() -> None:
    lines = np.arange(-60, 60, 3, dtype=np.float32)
    x, y, z = np.meshgrid(lines, lines - 20, lines - 200, indexing="ij")
    patient = replace(draw_patient(np.random.default_rng(0)), aorta=350.0, blood=45.0)
    brightest, calcified = [], 0
    for seed in range(40):
        canvas = Canvas(x, y, z, (3.0, 3.0, 3.0), edge_mm=2.0)
        canvas.hu[:] = -90
        canvas.labels[:] = labels.BODY
        canvas.labels[x > 40] = labels.BONE
        before = canvas.labels.copy()
        draw_abdominal_branches(canvas, z + 190, patient, np.random.default_rng(seed))
        np.testing.assert_array_equal(canvas.labels, before)
        assert np.all(canvas.hu[(before == labels.BONE) | (z > -193)] == -90)
        brightest.append(float(canvas.hu.max()))
        calcified += bool(canvas.hu.max() > 420)
    # Some patients have none that shows; contrast medium is in most.
    assert min(brightest) == -90
    assert np.median(brightest) > 200
    assert 0 < calcified < 25


def test_muscles_lie_beside_spine_and_hips_and_within_the_wall() -> None:
    coarse = Grid((76, 60, 90), (5.0, 5.0, 6.0), (0.0, 0.0, -280.0))
    grown = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        patient = replace(draw_patient(rng), muscle=60.0, sacrum=-350.0)
        canvas = draw_canvas(rng, coarse)
        surfaces = Surfaces(canvas, patient, rng)
        canvas.hu[:] = -100
        canvas.labels[surfaces.muscle < 10] = labels.BODY
        before = canvas.labels.copy()
        abdomen._muscles(canvas, patient, surfaces, np.random.default_rng(seed))
        np.testing.assert_array_equal(canvas.labels, before)
        painted = canvas.hu > -60
        assert not painted[surfaces.muscle > 0].any()
        assert canvas.hu.max() <= 60
        loins = painted & (np.abs(canvas.z + 290) < 20)
        hips = painted & (np.abs(canvas.z + 430) < 20)
        for side in (-1, 1):
            ours = canvas.x * side > 0
            psoas, erector = loins & ours & (canvas.y > -60), loins & ours & (canvas.y < -70)
            glutei = hips & ours & (np.abs(canvas.x) > 80)
            grown.append((np.count_nonzero(psoas), np.count_nonzero(erector), np.count_nonzero(glutei)))
            assert 15 < np.abs(canvas.x[psoas]).mean() < 60
    assert np.min(grown) > 5
    assert len(set(grown)) > 4


def test_ribs_do_not_fold_however_steep_they_are() -> None:
    angle, z = np.meshgrid(np.linspace(0, 2.7, 50), np.linspace(-230, 112, 400), indexing="ij")
    for slope in (24.0, 42.0, 70.0, 92.4):
        for uppermost in (0.25, 0.6, 0.9):
            height = straightened(angle.astype(np.float32), z.astype(np.float32), slope, uppermost)
            assert np.diff(height, axis=1).min() > 0


def test_half_of_those_who_are_not_sound_have_ribs_of_another_build() -> None:
    x, y, z = np.zeros((3, 2, 2, 2), np.float32)
    plain = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        patient = draw_patient(rng, sound=False)
        skeleton = Skeleton(Canvas(x, y, z, (6.0, 6.0, 6.0), edge_mm=4.0), patient, rng)
        build = ribs._build(skeleton)
        assert build.cortex_mm <= skeleton.cortex_mm
        assert 1 <= build.slope < 2.2
        assert 0.65 < build.thickness <= 1
        plain_build = ribs.Build(1.0, 1.0, 0.25, skeleton.cortex_mm, patient.marrow)
        plain += bool(build == plain_build)
        skeleton.patient = replace(patient, sound=True)
        assert ribs._build(skeleton) == plain_build
    assert 25 < plain < 55


def test_vertebrae_differ_and_are_denser_at_their_ends() -> None:
    lines = np.arange(-15, 15, 3, dtype=np.float32)
    heights, numbers = np.linspace(-8, 8, 9, dtype=np.float32), np.arange(6, dtype=np.float32)
    x, within, number = np.meshgrid(lines, heights, numbers, indexing="ij")
    half = np.full_like(x, 8)
    column = spine.Column((slice(None),) * 3, x, x, within, number, half, half, half, half)
    patient = replace(draw_patient(np.random.default_rng(0)), marrow=20.0, fat=-100.0)
    apart, ends, sides = [], [], []
    for seed in range(40):
        hu = spine.trabecular(column, patient, np.random.default_rng(seed))
        assert hu.dtype == np.float32
        floored = spine.trabecular(column, replace(patient, fat=15.0), np.random.default_rng(seed))
        np.testing.assert_array_equal(floored, np.maximum(hu, 15))
        apart.append(float(np.ptp(hu.mean(axis=(0, 1)))))
        ends.append(float(hu[:, 0].mean() - hu[:, 4].mean()))
        sides.append(float(hu[-1].mean() - hu[0].mean()))
    assert max(apart) > 50
    assert min(ends) >= -1e-3
    assert max(ends) > 90
    assert min(sides) < -40 < 40 < max(sides)


def counted(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[object]:
    """Grows with each call of a function, which goes on drawing."""
    calls: list[object] = []
    draw = getattr(module, name)

    def record(*arguments: object) -> object:
        calls.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(module, name, record)
    return calls


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (vessel, "widened"),
        (vessel, "draw_dissection"),
        (vessel, "_calcium"),
        (vessel, "_stent"),
        (spine, "trabecular"),
    ],
)
def test_what_ails_some_is_drawn_in_no_sound_patient(
    module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, module, name)
    for seed in range(6):
        make_example(seed, COARSE_MM, sound=True)
    assert not calls
    for seed in range(40):
        make_example(seed, COARSE_MM)
        if calls:
            return
    raise AssertionError(f"{name} never occurs")


@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize(
    ("module", "name"), [(abdomen, "_muscles"), (abdomen, "draw_abdominal_branches"), (vessel, "_iliac")]
)
def test_what_everybody_has_is_drawn_in_everybody(
    module: ModuleType, name: str, sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, module, name)
    for seed in range(3):
        before = len(calls)
        make_example(seed, COARSE_MM, abdominal=True, sound=sound)
        assert len(calls) > before


def test_what_is_drawn_of_a_named_generator_depends_on_seed_and_name_alone() -> None:
    first, later = np.random.default_rng(3), np.random.default_rng(3)
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


def test_the_skull_is_bone_around_a_brain_and_ends_the_spine() -> None:
    grid = Grid((48, 54, 60), (5.0, 5.0, 5.0), (0.0, 0.0, 300.0))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        patient = draw_patient(rng)
        canvas = draw_canvas(rng, grid)
        surfaces = Surfaces(canvas, patient, rng)
        draw_trunk(canvas, patient, surfaces, rng)
        skull = canvas.labels == labels.BONE
        draw_spine(Skeleton(canvas, patient, rng))
        in_head = canvas.z > 230
        np.testing.assert_array_equal((canvas.labels == labels.BONE) & in_head, skull & in_head)
        assert np.any(canvas.labels[canvas.z < 190] == labels.BONE)
        filled = ndimage.binary_fill_holes(skull | (canvas.labels == labels.BODY))
        brain = filled & ~skull & (np.hypot(canvas.x, canvas.y) < 30) & (np.abs(canvas.z - 330) < 20)
        assert np.all(canvas.labels[brain] == labels.BODY)
        assert 2 <= np.count_nonzero(skull[:, 27, 36]) <= 6


def test_discs_are_thicker_in_the_loins_than_in_the_chest() -> None:
    line = np.linspace(-300, 60, 100, dtype=np.float32).reshape(1, 1, -1)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        skeleton = Skeleton(Canvas(line * 0, line * 0, line, (2.0, 2.0, 4.0), edge_mm=1.0), draw_patient(rng), rng)
        column = spine._column(skeleton, (slice(None),) * 3)
        discs_mm = (column.pitch - 2 * column.half).ravel()
        assert 4.9 < discs_mm[0] < 14
        assert 2.3 < discs_mm[-1] < 6.5
        assert discs_mm[0] > 1.8 * discs_mm[-1]


def test_humeri_lie_within_the_arms() -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        patient = draw_patient(rng)
        grid = Grid((90, 60, 110), (6.0, 6.0, 6.0), (0.0, 0.0, 60.0))
        canvas = draw_canvas(rng, grid)
        surfaces = Surfaces(canvas, patient, rng)
        arms = draw_trunk(canvas, patient, surfaces, rng)
        flesh = canvas.labels == labels.BODY
        Skeleton(canvas, patient, rng).shoulders(surfaces, arms)
        # Without the skull.
        bone = (canvas.labels == labels.BONE) & (canvas.z < 190)
        assert np.count_nonzero(bone) > 300
        assert np.mean(flesh[bone]) > 0.98


def test_blankets_hang_in_the_air_and_leave_the_patient_as_he_is(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_spacings_reach_from_fine_planes_to_thick_slices() -> None:
    drawn = np.array([draw_spacing(np.random.default_rng(seed)) for seed in range(2000)])
    assert drawn[:, 0].min() < 0.65
    assert drawn[:, 2].min() < 0.8
    assert drawn[:, 2].max() > 4.9
    # No scan of hundreds of millions of voxels.
    assert np.prod(drawn, axis=1).min() > 1


def test_windows_are_cut_to_slabs_now_and_then(tmp_path: Path) -> None:
    (path,) = pool.make_pool(tmp_path, [3], 1)
    rng = np.random.default_rng(0)
    air = (CLIP_HU[0] - MEAN_HU) / STD_HU
    thinnest = []
    for _ in range(60):
        volume, shares = windows.draw_window(path, rng)
        assert volume.shape == shares.first.shape == WINDOW
        padded = volume == np.float32(air)
        outside = [padded.all(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
        thinnest.append(min(np.count_nonzero(~planes) for planes in outside))
        # What is outside of the scan is no part of the patient.
        for axis, planes in enumerate(outside):
            assert not shares.first.compress(planes, axis).any()
    assert min(thinnest) < 40 < np.median(thinnest) == max(thinnest)


@pytest.mark.parametrize("axis", range(3))
def test_a_coarser_scan_averages_over_its_voxels(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 5 mm hold two of the network's planes each; in the plane nothing is lost at 2.5 mm."""
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


def test_a_window_is_seen_coarser_and_keeps_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = pool.make_pool(tmp_path, [3], 1)
    monkeypatch.setattr(windows, "_CUT", 0.0)
    monkeypatch.setattr(windows, "_vary", lambda hu, _: None)
    sharpness = []
    for often in (0.0, 1.0):
        monkeypatch.setattr(windows, "_COARSE", often)
        rng = np.random.default_rng(1)
        volume, shares = windows.draw_window(path, rng)
        sharpness.append((float(np.abs(np.diff(volume, axis=2)).mean()), shares))
    (fine, before), (coarse, after) = sharpness
    assert coarse < 0.95 * fine
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_examples_of_another_generator_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pool.pool_folder(tmp_path)
    assert folder == pool.pool_folder(tmp_path)
    assert folder.parent == tmp_path
    written = {path.stem for path in Path(pool.__file__).parent.glob("*.py")}
    judging = {"evaluate", "grids", "judge", "real", "reference"}
    training = {"__init__", "export", "manifest", "network", "schedule", "seeds", "train", "windows"}
    assert set(pool._DRAWN_BY) == written - judging - training
    monkeypatch.setattr(pool, "_DRAWN_BY", pool._DRAWN_BY[1:])
    other = pool.pool_folder(tmp_path)
    assert other != folder
    edited = tmp_path / "resample.py"
    edited.write_text("# edited")
    monkeypatch.setattr(resample, "__file__", str(edited))
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
