"""Vessels of synthetic patients, healthy and diseased."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from training.ct_chest import labels
from training.ct_chest.synthetic import abdomen, generator, vessel
from training.ct_chest.synthetic.artery import draw_artery, draw_dissection
from training.ct_chest.synthetic.canvas import Canvas, Point
from training.ct_chest.synthetic.frame import Spine
from training.ct_chest.synthetic.generator import make_example
from training.ct_chest.synthetic.patient import draw_patient
from training.ct_chest.synthetic.scanner import Grid
from training.ct_chest.synthetic.vessel import along_spine, draw_abdominal_branches, draw_aorta, draw_vena_cava, widened

# A value that no other structure has.
MARK_HU = 2000.0


def test_an_artery_and_its_diseases_are_body_and_not_bone() -> None:
    lines = np.arange(-30, 30, 1.5, dtype=np.float32)
    x, y, z = np.meshgrid(lines, lines, lines, indexing="ij")
    patient = replace(draw_patient(np.random.default_rng(0)), aorta=350.0, blood=45.0)
    bright = 0
    wide = 0
    mixed = 0
    for seed in range(60):
        canvas = Canvas(x, y, z, (1.5, 1.5, 1.5), edge_mm=1.0)
        draw_artery(canvas, [(0, 0, -60), (0, 0, 60)], [10, 10], patient, np.random.default_rng(seed))
        inside = x**2 + y**2 < 7**2
        around = x**2 + y**2 > 12**2
        assert np.all(canvas.labels[inside] == labels.BODY)
        assert set(np.unique(canvas.labels)) == {labels.BACKGROUND, labels.BODY}
        bright += bool(np.any(canvas.hu > 600))
        wide += bool(np.count_nonzero(canvas.labels[around]) > 1000)
        mixed += bool(np.any(np.abs(canvas.hu[inside] - 350) > 30))
    # Calcium or a stent in some, thrombus around the lumen in a few, a false lumen or calcium far inside in half.
    assert 10 < bright < 50
    assert 2 < wide < 30
    assert 20 < mixed < 48


def test_a_dissection_has_two_lumina_with_a_flap_between() -> None:
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
    radii = np.linspace(15, 9, 12).tolist()
    ratios = np.array([np.divide(widened(radii, np.random.default_rng(seed)), radii) for seed in range(200)])
    assert 30 < np.count_nonzero(ratios.max(axis=1) > 1.05) < 70
    assert ratios.min() == 1
    assert 1.6 < ratios.max() < 1.8
    # Some locally, some along their whole length.
    wide = ratios[ratios.max(axis=1) > 1.05]
    assert np.count_nonzero(wide.min(axis=1) < 1.01) > 5
    assert np.count_nonzero(wide.min(axis=1) > 1.01) > 5


def gap_mm(spine: Spine, point: Point, radius: float) -> float:
    """Distance between the surfaces of a vessel and of the vertebral body beside it."""
    x, y = spine.middle(np.array(point[2], np.float32))
    size = spine.size_at(np.array(point[2], np.float32))
    around = np.linspace(0, 2 * np.pi, 400)
    distances = np.hypot(x + 17 * size * np.sin(around) - point[0], y + 13.5 * size * np.cos(around) - point[1])
    return float(distances.min()) - radius


@pytest.mark.parametrize(("healthy", "furthest_mm"), [(True, 5.5), (False, 17.0)])
def test_the_aorta_lies_left_of_the_spine_then_in_front_of_it(healthy: bool, furthest_mm: float) -> None:
    gaps = []
    upper = []
    lowest = []
    for seed in range(60):
        patient = draw_patient(np.random.default_rng(seed), healthy=healthy)
        radii = np.linspace(14, 8, 8).tolist()
        course = along_spine(patient, radii, 5 * (seed % 2), np.random.default_rng(seed))
        spine = patient.frame.spine
        gaps += [gap_mm(spine, point, radius) for point, radius in zip(course, radii, strict=True)]
        assert np.diff([z for _, _, z in course]).max() < -30
        assert 25 < course[-1][2] - spine.sacrum < 60
        upper.append(course[0][0])
        lowest.append((course[-1][0], course[-1][1] - float(spine.middle(np.array(course[-1][2], np.float32))[1])))
    assert min(gaps) > -1
    assert furthest_mm - 2 < max(gaps) < furthest_mm
    assert max(upper) < -15
    to_the_right, to_the_front = np.array(lowest).T
    assert np.median(np.abs(to_the_right)) < 8
    assert to_the_front.min() > 18


@pytest.mark.parametrize("healthy", [True, False])
def test_no_other_structure_is_drawn_into_the_descending_aorta_and_the_iliac_arteries(
    healthy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Canvas, list[Point], list[float]]] = []

    def mark(canvas: Canvas, points: list[Point], radii: list[float], *_: object) -> None:
        drawn.append((canvas, points, radii))
        canvas.tube(points, radii, MARK_HU, labels.BODY)

    monkeypatch.setattr(vessel, "draw_artery", mark)
    monkeypatch.setattr(generator, "expose", lambda *_, **__: None)
    monkeypatch.setattr(generator, "draw_grid", lambda *_, **__: Grid((90, 75, 180), (4.0, 4.0, 4.0), (0, 0, -180)))
    for seed in range(6):
        del drawn[:]
        make_example(seed, (4.0, 4.0, 4.0), healthy=healthy)
        _, *descending_and_iliac = drawn
        assert len(descending_and_iliac) == 3
        for canvas, points, radii in descending_and_iliac:
            inside = np.zeros(canvas.shape, np.bool_)
            for _, distance, box in canvas.cones(points, radii):
                inside[box] |= distance < -2
            assert np.count_nonzero(inside) > 20
            assert np.mean(canvas.labels[inside] == labels.BONE) < 0.01
            assert np.mean(canvas.hu[inside] < MARK_HU / 2) < 0.05


def test_iliac_vessels_start_where_those_of_the_trunk_end() -> None:
    lines = [np.arange(-90, 90, 3, dtype=np.float32), np.arange(-70, 80, 3, dtype=np.float32)]
    x, y, z = np.meshgrid(*lines, np.arange(-560, -60, 4, dtype=np.float32), indexing="ij")
    for seed in range(6):
        patient = replace(draw_patient(np.random.default_rng(seed), healthy=True), aorta=300.0, blood=300.0)
        of_arteries, of_veins = (Canvas(x, y, z, (3.0, 3.0, 4.0), edge_mm=1.0) for _ in range(2))
        draw_aorta(of_arteries, (-4.0, 14.0, 0.0), patient, np.random.default_rng(seed))
        draw_vena_cava(of_veins, -40.0, patient)
        for canvas in (of_arteries, of_veins):
            parts, count = ndimage.label(canvas.labels == labels.BODY)
            assert count == 1
            ends = parts[:, :, z[0, 0] < patient.frame.hip[2] - 10]
            assert np.any(ends[:30]) and np.any(ends[30:])  # noqa: PT018
        # Above the loins, the aorta lies further to the left than the vena cava.
        chest = z > -250
        artery, vein = (x[(canvas.labels == labels.BODY) & chest].mean() for canvas in (of_arteries, of_veins))
        assert artery < -5 < 12 < vein


def test_abdominal_branches_lie_in_the_abdomen_and_not_in_its_gas() -> None:
    lines = np.arange(-60, 60, 3, dtype=np.float32)
    x, y, z = np.meshgrid(lines, lines - 20, lines - 200, indexing="ij")
    patient = replace(draw_patient(np.random.default_rng(0)), aorta=350.0, blood=45.0)
    brightest = []
    calcified = 0
    for seed in range(40):
        canvas = Canvas(x, y, z, (3.0, 3.0, 3.0), edge_mm=2.0)
        canvas.labels[:] = labels.BODY
        canvas.hu[:] = -90
        canvas.hu[x > 20] = -1000
        draw_abdominal_branches(canvas, z + 190, patient, np.random.default_rng(seed))
        assert np.all(canvas.labels == labels.BODY)
        assert np.all(canvas.hu[x > 20] == -1000)
        assert np.all(canvas.hu[(x <= 20) & (z > -193)] == -90)
        brightest.append(float(canvas.hu.max()))
        calcified += bool(canvas.hu.max() > 420)
    # In some patients none is visible; most have contrast medium.
    assert min(brightest) == -90
    assert np.median(brightest) > 200
    assert 0 < calcified < 25


def test_abdominal_branches_are_seen_in_finished_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spine and great vessels, which are drawn later, do not cover most of them."""
    monkeypatch.setattr(generator, "expose", lambda *_, **__: None)
    found: list[tuple[Canvas, NDArray[np.bool_], NDArray[np.float32]]] = []

    def record(canvas: Canvas, *arguments: Any) -> None:
        before = canvas.hu.copy()
        draw_abdominal_branches(canvas, *arguments)
        found.append((canvas, np.abs(canvas.hu - before) > 5, canvas.hu.copy()))

    monkeypatch.setattr(abdomen, "draw_abdominal_branches", record)
    for seed in range(8):
        make_example(seed, (5.0, 5.0, 5.0), abdominal=True)
    assert len(found) == 8
    left = [np.mean(np.abs(canvas.hu[new] - hu[new]) < 10) for canvas, new, hu in found if new.any()]
    assert len(left) > 4
    assert np.median(left) > 0.6
