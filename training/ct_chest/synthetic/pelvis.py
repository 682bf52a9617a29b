"""Sacrum, hip bones and upper femora: cruder than the chest, but enough to teach that they are bone."""

import numpy as np

from training.ct_chest.labels import BODY
from training.ct_chest.synthetic.canvas import Point
from training.ct_chest.synthetic.fields import between
from training.ct_chest.synthetic.skeleton import Skeleton


def draw_pelvis(skeleton: Skeleton) -> None:
    """Paints the pelvis below the spine."""
    canvas = skeleton.canvas
    rng = skeleton.rng
    top = skeleton.patient.frame.spine.sacrum
    if canvas.box((-190, -150, top - 260), (190, 150, top + 60)) is None:
        return
    _sacrum(skeleton, top)
    # Skips four numbers that the frame draws today, so that a seed still gives the same scan.
    rng.random(4)
    hip = skeleton.patient.frame.hip
    _wings(skeleton, top, hip)
    for side in (-1, 1):
        _hip(skeleton, side, hip)
    # The symphysis.
    canvas.blob((0.0, hip[1] + 50, hip[2] - 18), (between(rng, 2, 4), 9.0, 18.0), between(rng, 60, 120), BODY)


def _sacrum(skeleton: Skeleton, top: float) -> None:
    """Paints the sacrum, as wide as the gap between the wings, and bent back below L5."""
    canvas = skeleton.canvas
    rng = skeleton.rng
    wide = between(rng, 40, 50)
    deep = between(rng, 15, 22)
    box = canvas.box((-60, -140, top - 96), (60, 0, top))
    if box is None:
        return
    z = canvas.z[box]
    middle_x, middle_y = skeleton.patient.frame.spine.middle(np.array(top, np.float32))
    down = np.clip(top - z, 0, 96)
    x = canvas.x[box] - middle_x * (1 - down / 96)
    y = canvas.y[box] - middle_y + down * (np.float32(0.6) - down * np.float32(0.0035))
    outness = np.sqrt((x / wide) ** 2 + (y / deep) ** 2 + ((z - np.float32(top - 42)) / 52) ** 2)
    distance = (outness - 1) * np.float32(deep)
    skeleton.bone(np.maximum(distance, z - np.float32(top - 2)), box)
    foramina = np.abs(x) - 20
    holes = np.sqrt(foramina**2 + ((z - top + 8) % 20 - 10) ** 2) - np.float32(between(rng, 2, 4))
    canvas.paint(np.maximum(holes, distance), skeleton.patient.fat, BODY, box, z < top - 8)


def _wings(skeleton: Skeleton, top: float, hip: Point) -> None:
    """Paints the iliac wings, plates around the pelvic cavity that lean outwards to the crest."""
    canvas = skeleton.canvas
    rng = skeleton.rng
    box = canvas.box((-170, -120, top - 130), (170, 100, top + 60))
    if box is None:
        return
    x = np.abs(canvas.x[box])
    y = canvas.y[box]
    z = canvas.z[box]
    height = np.clip((z - hip[2]) / np.float32(top + 35 - hip[2]), -0.2, 1.2)
    # Along the way from the sacroiliac joint behind to the spine in front the plate turns to the side.
    lean = np.float32(between(rng, 22, 42)) * height
    along = (y + 62) / 125
    plate = x - (42 + np.float32(between(rng, 42, 58)) * np.sqrt(np.clip(along, 0, 1))) - lean * np.clip(along, 0.1, 1)
    thick = between(rng, 4, 7) + 5 * np.clip(-height + 0.35, 0, 1) + 3 * np.clip(height - 0.85, 0, 1) / 0.15
    crest = z - np.float32(top + between(rng, 15, 40)) + (y + 5) ** 2 / np.float32(between(rng, 90, 160))
    ends = np.maximum(np.maximum(-66 - y, y - between(rng, 42, 60)), np.maximum(crest, hip[2] - 4 - z))
    skeleton.bone(np.maximum(np.abs(plate) * np.float32(0.8) - thick, ends), box)


def _hip(skeleton: Skeleton, side: int, hip: Point) -> None:
    """Paints the socket, the pubic and ischial bones, the joint's gap, and the femur."""
    canvas = skeleton.canvas
    rng = skeleton.rng
    x = side * hip[0]
    y = hip[1]
    z = hip[2]
    head = between(rng, 21, 26)
    found = canvas.ellipsoid((x - side * 6, y, z + 6), (head + 11, head + 9, head + 12))
    if found is not None:
        skeleton.bone(found[0], found[1])
    symphysis: Point = (side * 6.0, y + 50, z - 18)
    ischium: Point = (side * hip[0] * 0.62, y - 42, z - 58)
    wide = between(rng, 6, 9)
    skeleton.capsules([(x - side * 18, y + 20, z + 4), symphysis], [12.0, wide])
    skeleton.capsules([(x - side * 8, y - 22, z - 14), ischium], [15.0, 15.0])
    skeleton.capsules([ischium, (side * 20.0, y + 38, z - 42), symphysis], [10.0, wide * 0.8, wide])
    gap = between(rng, 1.5, 4)
    cup: Point = (x + side * 2, y, z)
    canvas.blob(cup, (head + gap, head + gap, head + gap), between(rng, 20, 90), BODY)
    canvas.tube([cup, (x + side * 34, y, z - 16)], [head + gap, head + gap], skeleton.patient.muscle, BODY)
    trochanter: Point = (x + side * between(rng, 40, 48), y - 12, z - between(rng, 22, 38))
    _femur(skeleton, (x, y, z), trochanter, head)


def _femur(skeleton: Skeleton, centre: Point, trochanter: Point, head: float) -> None:
    side = np.sign(centre[0])
    shaft = between(skeleton.rng, 13, 17)
    knee: Point = (trochanter[0] - side * 30, trochanter[1] + 10, trochanter[2] - 330)
    skeleton.capsules([trochanter, knee], [18.0, shaft])
    skeleton.capsules([centre, trochanter], [between(skeleton.rng, 15, 18), 17.0])
    found = skeleton.canvas.ellipsoid(centre, (head, head, head))
    if found is not None:
        skeleton.bone(found[0], found[1])
    # The shaft's marrow is fat.
    below: Point = (trochanter[0] - side * 6, trochanter[1] + 2, trochanter[2] - 60)
    skeleton.canvas.tube([below, knee], [shaft * 0.5, shaft * 0.5], skeleton.patient.fat)
