"""Position and density of bones and muscles in synthetic patients."""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from training.ct_chest import labels
from training.ct_chest.synthetic import abdomen, pelvis, ribs, spine
from training.ct_chest.synthetic.canvas import Canvas
from training.ct_chest.synthetic.frame import Spine
from training.ct_chest.synthetic.patient import Patient, Surfaces, draw_patient
from training.ct_chest.synthetic.ribs import straightened
from training.ct_chest.synthetic.scanner import Grid, draw_canvas
from training.ct_chest.synthetic.skeleton import Skeleton
from training.ct_chest.synthetic.spine import draw_spine
from training.ct_chest.synthetic.trunk import draw_trunk


def test_muscles_lie_beside_spine_and_hips_and_within_the_wall() -> None:
    coarse = Grid((76, 60, 90), (5.0, 5.0, 6.0), (0.0, 0.0, -280.0))
    grown = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        patient = replace(draw_patient(rng), muscle=60.0)
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
        hips = painted & (np.abs(canvas.z - patient.frame.hip[2]) < 20)
        for side in (-1, 1):
            ours = canvas.x * side > 0
            psoas = loins & ours & (canvas.y > -60)
            erector = loins & ours & (canvas.y < -70)
            glutei = hips & ours & (np.abs(canvas.x) > 80)
            grown.append((np.count_nonzero(psoas), np.count_nonzero(erector), np.count_nonzero(glutei)))
            assert 15 < np.abs(canvas.x[psoas]).mean() < 60
    assert np.min(grown) > 5
    assert len(set(grown)) > 4


def test_ribs_do_not_fold_at_any_slope() -> None:
    angle, z = np.meshgrid(np.linspace(0, 2.7, 50), np.linspace(-230, 112, 400), indexing="ij")
    for slope in (24.0, 42.0, 70.0, 92.4):
        for uppermost in (0.25, 0.6, 0.9):
            height = straightened(angle.astype(np.float32), z.astype(np.float32), slope, uppermost)
            assert np.diff(height, axis=1).min() > 0


def test_half_of_the_diseased_patients_have_ribs_of_another_shape() -> None:
    x, y, z = np.zeros((3, 2, 2, 2), np.float32)
    plain = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        patient = draw_patient(rng, healthy=False)
        skeleton = Skeleton(Canvas(x, y, z, (6.0, 6.0, 6.0), edge_mm=4.0), patient, rng)
        build = ribs._build(skeleton)
        assert build.cortex_mm <= skeleton.cortex_mm
        assert 1 <= build.slope < 2.2
        assert 0.65 < build.thickness <= 1
        plain_build = ribs.Build(1.0, 1.0, 0.25, skeleton.cortex_mm, patient.marrow)
        plain += bool(build == plain_build)
        skeleton.patient = replace(patient, healthy=True)
        assert ribs._build(skeleton) == plain_build
    assert 25 < plain < 55


def test_vertebrae_differ_and_are_denser_at_their_ends() -> None:
    lines = np.arange(-15, 15, 3, dtype=np.float32)
    heights = np.linspace(-8, 8, 9, dtype=np.float32)
    numbers = np.arange(6, dtype=np.float32)
    x, within, number = np.meshgrid(lines, heights, numbers, indexing="ij")
    half = np.full_like(x, 8)
    column = spine.Column((slice(None),) * 3, x, x, within, number, half, half, half, half)
    patient = replace(draw_patient(np.random.default_rng(0)), marrow=20.0, fat=-100.0)
    apart = []
    ends = []
    sides = []
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


def with_trunk(patient: Patient, grid: Grid, rng: np.random.Generator) -> Canvas:
    canvas = draw_canvas(rng, grid)
    draw_trunk(canvas, patient, Surfaces(canvas, patient, rng), rng)
    return canvas


def test_the_skull_encloses_a_brain_and_rests_on_the_spine() -> None:
    grid = Grid((56, 62, 76), (4.0, 4.0, 4.0), (0.0, 0.0, 340.0))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        patient = draw_patient(rng)
        canvas = with_trunk(patient, grid, rng)
        skull = canvas.labels == labels.BONE
        head = patient.frame.head
        within = [(canvas.x - head[0]) / 66, (canvas.y - head[1]) / 84, (canvas.z - head[2] - 25) / 79]
        around = np.linalg.norm(within, axis=0)
        brain = around < 0.95
        assert np.count_nonzero(brain) > 8000
        assert np.all(canvas.labels[brain] == labels.BODY)
        assert np.all(canvas.hu[brain] < 200)
        assert np.all(canvas.hu[brain] > -100)
        assert np.mean(skull[(around > 1.03) & (around < 1.05)]) > 0.9
        draw_spine(Skeleton(canvas, patient, rng))
        spine = (canvas.labels == labels.BONE) & ~skull
        assert not spine[brain].any()
        assert head[2] - 72 < canvas.z[spine].max() < head[2] - 45


def test_the_pharynx_is_air_below_the_skull_and_not_trachea() -> None:
    grid = Grid((40, 50, 60), (4.0, 4.0, 4.0), (0.0, 0.0, 240.0))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        patient = draw_patient(rng)
        canvas = with_trunk(patient, grid, rng)
        high = patient.frame.head[2] - 80
        within = (np.hypot(canvas.x, canvas.y - 13) < 6) & (canvas.z > 228) & (canvas.z < high)
        assert np.count_nonzero(within) > 3
        assert np.all(canvas.hu[within] < -900)
        assert np.all(canvas.labels[within] == labels.BODY)


def test_the_neck_ends_within_the_head() -> None:
    """Above the shoulders no tissue is wider than the head, so no shelf of fat remains."""
    grid = Grid((56, 62, 60), (4.0, 4.0, 4.0), (0.0, 0.0, 300.0))
    for seed in range(6):
        rng = np.random.default_rng(seed)
        patient = replace(draw_patient(rng), arms_up=False, fat_mm=38.0)
        canvas = with_trunk(patient, grid, rng)
        x, y, z = patient.frame.head
        within = [(canvas.x - x) / 83, (canvas.y - y) / 101, (canvas.z - z) / 121]
        outside = (np.linalg.norm(within, axis=0) > 1) & (canvas.labels == labels.BODY)
        assert not outside[canvas.z > z - 30].any()
        # The neck is thinner than a fat trunk.
        neck = outside & (canvas.z > 190)
        assert np.abs(canvas.x[neck]).max() < 85


def test_lumbar_discs_are_thicker_than_thoracic_ones() -> None:
    line = np.arange(-310, 200, 0.25, dtype=np.float32).reshape(1, 1, -1)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        patient = draw_patient(rng)
        skeleton = Skeleton(Canvas(line * 0, line * 0 - 50, line, (1.0, 1.0, 0.25), edge_mm=1.0), patient, rng)
        column = spine._column(skeleton, (slice(None),) * 3)
        in_disc = (np.abs(column.within) > column.half).ravel()
        discs, count = ndimage.label(in_disc)
        thick_mm = np.bincount(discs)[1:] * 0.25
        apart_mm = np.diff(ndimage.center_of_mass(in_disc, discs, range(1, count + 1)), axis=0) * 0.25
        # The first and the last disc may be cut.
        assert 5 < thick_mm[1] < 13
        assert 2 < thick_mm[-2] < 6
        assert thick_mm[1] > 1.8 * thick_mm[-2]
        assert 32 < apart_mm[1, 0] < 37
        assert 16 < apart_mm[-2, 0] < 20


def test_the_lowest_vertebra_rests_on_the_sacrum() -> None:
    grid = Grid((30, 40, 40), (4.0, 4.0, 4.0), (0.0, -60.0, -360.0))
    for seed in range(6):
        rng = np.random.default_rng(seed)
        patient = draw_patient(rng)
        x, y, z = (
            axis.copy()
            for axis in np.meshgrid(
                *(
                    ((np.arange(size) - (size - 1) / 2) * 4 + middle).astype(np.float32)
                    for size, middle in zip(grid.shape, grid.centre_mm, strict=True)
                ),
                indexing="ij",
            )
        )
        canvas = Canvas(x, y, z, grid.spacing_mm, edge_mm=2.0)
        pelvis._sacrum(Skeleton(canvas, patient, rng), patient.frame.spine.sacrum)
        top = (canvas.labels == labels.BONE) & (z > patient.frame.spine.sacrum - 10)
        (x_mm, y_mm) = patient.frame.spine.middle(np.array(patient.frame.spine.sacrum, np.float32))
        assert abs(x[top].mean() - x_mm) < 2
        assert abs(y[top].mean() - y_mm) < 6
        lower = (canvas.labels == labels.BONE) & (z < patient.frame.spine.sacrum - 50)
        assert y[lower].mean() < y[top].mean() - 12


def test_a_point_beside_the_spine_has_its_documented_position() -> None:
    spine = Spine(bend_mm=0, kyphosis_mm=0, size=1, top=220, sacrum=-350)
    np.testing.assert_allclose(spine.beside(0, 0, 10), (0, -28.5, 0))
    np.testing.assert_allclose(spine.beside(0, np.pi / 2, 10), (27, -52, 0), atol=1e-5)
    np.testing.assert_allclose(spine.beside(-200, -np.pi / 2, 0), (-17 * 1.22, -52, -200), atol=1e-5)


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
