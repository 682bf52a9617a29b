"""Lungs with their vessels and bronchi, the trachea, and the mediastinum."""

import numpy as np

from training.ct_chest.labels import BODY, LUNG_LEFT, LUNG_RIGHT, TRACHEA
from training.ct_chest.synthetic.canvas import AIR_HU, Canvas, Field, Point
from training.ct_chest.synthetic.fields import between, chance, smooth_field
from training.ct_chest.synthetic.patient import Patient, Surfaces
from training.ct_chest.synthetic.vessel import draw_aorta, draw_vena_cava

HILA: dict[int, Point] = {LUNG_RIGHT: (36.0, -12.0, -22.0), LUNG_LEFT: (-38.0, -14.0, -14.0)}


class Chest:
    """Paints the contents of the thoracic cavity.

    Attributes:
        lungs: Distance to the surface of both lungs, mm.
    """

    def __init__(self, canvas: Canvas, patient: Patient, surfaces: Surfaces, rng: np.random.Generator) -> None:
        self.canvas = canvas
        self.patient = patient
        self.surfaces = surfaces
        self.rng = rng
        self.shape = canvas.shape
        self.spacing_mm = canvas.spacing_mm
        self.lungs = self._surface()

    def _surface(self) -> Field:
        x = self.canvas.x
        y = self.canvas.y
        z = self.canvas.z
        rng = self.rng
        # Thin in front of the great vessels, wide where they and the spine lie.
        half = between(rng, 3, 9) + np.float32(between(rng, 11, 17)) * np.exp(-(((y + 22) / 42) ** 2))
        half = half + np.float32(between(rng, 4, 14)) * np.clip((z - 40) / 60, 0, 1)
        # Beside the spine the ribs bend forward.
        half = half + np.float32(between(rng, 0.5, 1.0)) * np.clip(-y - between(rng, 52, 66), 0, 45)
        half = half + 3 * smooth_field(rng, self.shape, self.spacing_mm, 45)
        shift = np.float32(between(rng, -6, 3)) + np.float32(between(rng, -8, 2)) * np.clip(y / 60, 0, 1)
        wall = self.surfaces.cavity + np.float32(between(rng, 0, 2.5))
        floor = -self.surfaces.dome + np.float32(between(rng, 2, 5))
        surface: Field = np.maximum(np.maximum(wall, floor), half - np.abs(x - shift))
        return surface

    def mediastinum(self) -> None:
        """Fills the cavity above the diaphragm with fat."""
        inside = np.maximum(self.surfaces.cavity, -self.surfaces.dome)
        self.canvas.paint(inside, self.patient.fat + between(self.rng, 0, 50), BODY)
        beside_spine = np.maximum(self.canvas.y + 64, self.surfaces.cavity)
        self.canvas.paint(beside_spine, self.patient.muscle, BODY)

    def parenchyma(self) -> None:
        """Fills the lungs: denser where gravity pulls, cloudy, with fine grain."""
        canvas = self.canvas
        rng = self.rng
        hu = np.full(self.shape, self.patient.lung, np.float32)
        hu += np.float32(between(rng, 0, 0.9) * self.patient.down) * canvas.y
        hu += np.float32(between(rng, 5, 45)) * smooth_field(rng, self.shape, self.spacing_mm, 30)
        grain = rng.standard_normal(self.shape, np.float32)
        hu += np.float32(between(rng, 5, 45)) * grain
        if chance(rng, 0.15):
            holes = smooth_field(rng, self.shape, self.spacing_mm, between(rng, 10, 25)) > between(rng, 0.3, 1.2)
            hu[holes] = between(rng, -1000, -940)
        hu = np.clip(hu, -1010, -200)
        for side, label in ((1, LUNG_RIGHT), (-1, LUNG_LEFT)):
            canvas.paint(self.lungs, hu, label, where=canvas.x * side > 0)

    def vessels(self) -> None:
        """Paints the pulmonary vessels, which branch from the hilum on, and bronchi beside some of them."""
        for label, hilum in HILA.items():
            side = 1 if label == LUNG_RIGHT else -1
            for _ in range(int(self.rng.integers(9, 17))):
                towards = self.rng.normal(0, 1, 3) * (0.6, 0.9, 1.1) + (side * 0.7, 0.0, -0.3)
                self._branch(hilum, towards / np.linalg.norm(towards), between(self.rng, 3.2, 6.5), 4)

    def _branch(self, start: Point, direction: Field, radius: float, generations: int) -> None:
        rng = self.rng
        length = between(rng, 18, 38)
        end = np.array(start) + direction * length
        stop = (float(end[0]), float(end[1]), float(end[2]))
        thin = radius * between(rng, 0.6, 0.85)
        found = self.canvas.capsule(start, stop, radius, thin)
        if found is None:
            return
        distance, box = found
        inside = (self.lungs[box] < 0) & (self.canvas.labels[box] != BODY)
        self.canvas.paint(distance, self.patient.arteries, None, box, inside)
        if radius > 2.6 and chance(rng, 0.5):
            beside = (start[0], start[1] + radius + 2, start[2] + 1), (stop[0], stop[1] + thin + 2, stop[2] + 1)
            for grown, hu in ((1.2, 0.0), (0.0, -980.0)):
                tube = self.canvas.capsule(*beside, radius * 0.6 + grown, thin * 0.6 + grown)
                if tube is not None:
                    self.canvas.paint(tube[0], hu, None, tube[1], (self.lungs[tube[1]] < 0))
        if generations:
            for _ in range(int(rng.integers(2, 4))):
                turned = direction + rng.normal(0, 0.55, 3)
                self._branch(stop, turned / np.linalg.norm(turned), thin, generations - 1)

    def heart(self) -> None:
        """Paints the heart in its fat, and the great vessels."""
        canvas = self.canvas
        rng = self.rng
        who = self.patient
        size = between(rng, 0.85, 1.35)
        low = (who.dome_right + who.dome_left) / 2
        z = float(np.clip(low + 34 * size, -85, -38)) + between(rng, -6, 6)
        centre = (between(rng, -34, -20), between(rng, 18, 36), z)
        turn = between(rng, 0.3, 0.9)
        radii = (58 * size, 43 * size, between(rng, 46, 60) * size)
        fat = between(rng, 2, 9)
        found = canvas.ellipsoid(centre, radii, turn)
        if found is not None:
            distance, box = found
            in_chest = self.surfaces.cavity[box] < -3
            canvas.paint(distance - fat, who.fat, BODY, box, in_chest)
            canvas.paint(distance, who.muscle, BODY, box, in_chest)
        canvas.blob((centre[0] - 14, centre[1] + 2, z - 6), (26 * size, 24 * size, 28 * size), who.aorta, BODY)
        canvas.blob((centre[0] + 14, centre[1] + 16, z), (28 * size, 18 * size, 30 * size), who.arteries, BODY)
        canvas.blob(
            (centre[0] + 44 * size, 8.0, z + 8),
            (24 * size, 26 * size, 32 * size),
            who.veins * 0.6 + who.blood * 0.4,
            BODY,
        )
        canvas.blob((centre[0] + 20, -18.0, z + 26), (32 * size, 18 * size, 20 * size), who.aorta, BODY)
        self._great_vessels(z, size)

    def _great_vessels(self, z: float, size: float) -> None:
        canvas = self.canvas
        rng = self.rng
        who = self.patient
        canvas.tube(self._oesophagus(), [8.0] * 4, who.muscle, BODY)
        draw_vena_cava(canvas, z, who)
        draw_aorta(canvas, (-4.0, 14.0, z + 30), who, rng)
        trunk: list[Point] = [(-20.0, 26.0, z + 34), (-22.0, 14.0, -8.0), (-16.0, 0.0, -8.0)]
        canvas.tube(trunk, [15 * size, 14.0, 11.0], who.arteries, BODY)
        canvas.tube(
            [(-16.0, 2.0, -12.0), (16.0, 2.0, -18.0), (40.0, -8.0, -20.0)], [11.0, 10.0, 8.0], who.arteries, BODY
        )
        canvas.tube([(-16.0, 0.0, -8.0), (-42.0, -16.0, -8.0)], [11.0, 8.0], who.arteries, BODY)
        for hilum in HILA.values():
            canvas.blob(hilum, (between(rng, 6, 13), between(rng, 8, 15), between(rng, 12, 22)), who.arteries, BODY)
        canvas.tube([(24.0, 14.0, z + 20), (22.0, 12.0, 40.0), (24.0, 12.0, 62.0)], [10.0, 9.0, 8.0], who.veins, BODY)
        canvas.tube([(24.0, 12.0, 58.0), (-34.0, 22.0, 72.0)], [8.0, 7.0], who.veins, BODY)
        for x, y in ((20.0, 4.0), (-16.0, 2.0), (-24.0, -14.0)):
            canvas.tube([(x * 0.6, y, 48.0), (x, y, 95.0), (x * 1.6, y, 240.0)], [7.0, 5.5, 4.5], who.aorta, BODY)
        if chance(rng, 0.4):
            self._gas_in_oesophagus(between(rng, 0, 1), between(rng, 10, 80))

    def _oesophagus(self) -> list[Point]:
        """The course of the oesophagus: behind the trachea, between heart and spine, then in front of the aorta."""
        beside = self.patient.frame.spine.beside
        return [beside(200, -0.1, 9), beside(60, -0.2, 10), beside(-40, 0.1, 12), beside(-120, -0.5, 34)]

    def _gas_in_oesophagus(self, place: float, long_mm: float) -> None:
        """Paints gas that begins at `place`, a share of the course, and is at most `long_mm` long."""
        course = np.array(self._oesophagus())
        n, share = divmod(place * (len(course) - 1), 1)
        start = course[int(n)]
        stop = course[int(n) + 1]
        along = (stop - start) * min(1 - share, long_mm / float(np.linalg.norm(stop - start)))
        first = start + share * (stop - start)
        ends: list[Point] = [(x, y, z) for x, y, z in (first.tolist(), (first + along).tolist())]
        self.canvas.tube(ends, [3.5, 3.5], AIR_HU, BODY)

    def thyroid(self) -> None:
        """Paints two bright lobes beside the trachea."""
        hu = between(self.rng, 60, 220)
        for side in (-1, 1):
            self.canvas.blob((side * 19.0, -4.0, between(self.rng, 115, 140)), (9.0, 11.0, 22.0), hu, BODY)

    def airways(self) -> None:
        """Paints trachea and main bronchi, the wall first; they come last, so nothing covers them."""
        canvas = self.canvas
        rng = self.rng
        radius = between(rng, 6.5, 10.5)
        top = between(rng, 175, 205)
        trachea: list[Point] = [(between(rng, -3, 3), 10.0, top), (1.0, -2.0, 95.0), (between(rng, 0, 6), -12.0, 2.0)]
        split = trachea[-1]
        right: list[Point] = [split, (24.0, -17.0, between(rng, -24, -14)), (40.0, -18.0, between(rng, -42, -28))]
        left: list[Point] = [split, (-22.0, -20.0, between(rng, -26, -14)), (-46.0, -24.0, between(rng, -40, -26))]
        widths = [radius, radius, radius * 1.05]
        bronchus = radius * between(rng, 0.68, 0.85)
        thin = [bronchus, bronchus * 0.95, bronchus * 0.75]
        wall = between(rng, 1.0, 2.2)
        for points, radii in ((trachea, widths), (right, thin), (left, thin)):
            canvas.tube(points, radii, between(rng, 10, 60), BODY, grown_mm=wall)
        for points, radii in ((trachea, widths), (right, thin), (left, thin)):
            canvas.tube(points, radii, between(rng, -1005, -960), TRACHEA)
        if chance(rng, 0.15):
            # An endotracheal tube.
            canvas.tube(trachea, [4.5] * 3, 200.0)
            canvas.tube(trachea, [3.5] * 3, -1000.0)
