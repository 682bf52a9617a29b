"""The grid that a patient is painted on: each voxel's place, HU and label. Shapes are distance fields in mm.

World and voxel axes are RAS+: x to the right, y to the front, z to the head, all mm, 0 at the carina.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]
Point: TypeAlias = tuple[float, float, float]
Shape: TypeAlias = tuple[int, int, int]
Spacing: TypeAlias = tuple[float, float, float]
Box: TypeAlias = tuple[slice, slice, slice]

AIR_HU = -1000.0
# Distance between the sampled voxels by which the bounding box of a shape is found.
_STRIDE_MM = 12.0


class Canvas:
    """HU and labels on a grid, and the place of each voxel in the undeformed patient.

    Attributes:
        x, y, z: Shape (i, j, k), the place of each voxel in the undeformed patient, mm.
        hu: Shape (i, j, k).
        labels: Shape (i, j, k), uint8.
        spacing_mm: Size of a voxel.
        shape: Number of voxels along each axis.
        edge_mm: Width of the transition from one tissue to the next, the scan's partial volume.
    """

    def __init__(self, x: Field, y: Field, z: Field, spacing_mm: Spacing, edge_mm: float) -> None:
        self.x = x
        self.y = y
        self.z = z
        self.spacing_mm = spacing_mm
        i, j, k = x.shape
        self.shape: Shape = (i, j, k)
        self.hu = np.full(x.shape, AIR_HU, np.float32)
        self.labels = np.zeros(x.shape, np.uint8)
        self.edge_mm = edge_mm
        self._strides = [max(1, round(_STRIDE_MM / spacing)) for spacing in spacing_mm]
        along_i, along_j, along_k = self._strides
        self._coarse = [axis[::along_i, ::along_j, ::along_k].copy() for axis in (x, y, z)]
        self._margin_mm = 1.5 * max(stride * spacing for stride, spacing in zip(self._strides, spacing_mm, strict=True))

    def box(self, low: Point, high: Point) -> Box | None:
        """The box of voxels between two corners in the undeformed patient, with a margin; None where there are none."""
        margin = self._margin_mm + self.edge_mm
        near = np.ones(self._coarse[0].shape, np.bool_)
        for axis, least, most in zip(self._coarse, low, high, strict=True):
            near &= (axis > least - margin) & (axis < most + margin)
        lines = (near.any((1, 2)), near.any((0, 2)), near.any((0, 1)))
        if not lines[0].any():
            return None
        spans = [np.flatnonzero(line) for line in lines]
        i, j, k = (
            slice(max(0, (int(span[0]) - 1) * stride), min(size, (int(span[-1]) + 1) * stride + 1))
            for span, size, stride in zip(spans, self.shape, self._strides, strict=True)
        )
        return i, j, k

    def paint(
        self,
        distance: Field,
        hu: float | Field,
        label: int | None = None,
        box: Box | None = None,
        where: Mask | None = None,
    ) -> None:
        """Paints the inside of a shape, where the distance is negative.

        Args:
            distance: Shape of the box, mm to the surface.
            hu: One value or an array of the box's shape.
            label: The label of the inside; None keeps the labels.
            box: The part of the canvas; None is all of it.
            where: Shape of the box; nothing is painted where it is false.
        """
        place = box or (slice(None),) * 3
        share = np.clip(0.5 - distance / self.edge_mm, 0, 1)
        if where is not None:
            share *= where
        part = self.hu[place]
        part += share * (np.asarray(hu, np.float32) - part)
        if label is not None:
            self.labels[place][share > 0.5] = label

    def ellipsoid(self, centre: Point, radii: Point, turn: float = 0.0) -> tuple[Field, Box] | None:
        """Distance to an ellipsoid, turned about z by `turn` radians, and the box that it was computed in."""
        reach = max(radii[0], radii[1]) if turn else 0.0
        around = (max(radii[0], reach), max(radii[1], reach), radii[2])
        box = self.box(
            (centre[0] - around[0], centre[1] - around[1], centre[2] - around[2]),
            (centre[0] + around[0], centre[1] + around[1], centre[2] + around[2]),
        )
        if box is None:
            return None
        x = self.x[box] - centre[0]
        y = self.y[box] - centre[1]
        z = self.z[box] - centre[2]
        if turn:
            cos = np.float32(np.cos(turn))
            sin = np.float32(np.sin(turn))
            along = cos * x + sin * y
            y = cos * y - sin * x
            x = along
        length = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
        return (length - 1) * np.float32(min(radii)), box

    def blob(self, centre: Point, radii: Point, hu: float, label: int | None = None, *, turn: float = 0.0) -> None:
        """Paints an ellipsoid."""
        found = self.ellipsoid(centre, radii, turn)
        if found is not None:
            self.paint(found[0], hu, label, found[1])

    def capsule(self, start: Point, end: Point, r_start: float, r_end: float) -> tuple[Field, Box] | None:
        """Distance to a round cone between two points."""
        reach = max(r_start, r_end)
        low = (min(start[0], end[0]) - reach, min(start[1], end[1]) - reach, min(start[2], end[2]) - reach)
        high = (max(start[0], end[0]) + reach, max(start[1], end[1]) + reach, max(start[2], end[2]) + reach)
        box = self.box(low, high)
        if box is None:
            return None
        x = self.x[box] - start[0]
        y = self.y[box] - start[1]
        z = self.z[box] - start[2]
        ax, ay, az = (np.float32(b - a) for a, b in zip(start, end, strict=True))
        along = np.clip((x * ax + y * ay + z * az) / (ax * ax + ay * ay + az * az + np.float32(1e-6)), 0, 1)
        length = np.sqrt((x - along * ax) ** 2 + (y - along * ay) ** 2 + (z - along * az) ** 2)
        return length - (np.float32(r_start) + along * np.float32(r_end - r_start)), box

    def tube(
        self,
        points: Sequence[Point],
        radii: Sequence[float],
        hu: float,
        label: int | None = None,
        *,
        grown_mm: float = 0.0,
        where: Mask | None = None,
    ) -> None:
        """Paints round cones from point to point, only where `where`, of the canvas's shape, is true."""
        for _, distance, box in self.cones(points, [radius + grown_mm for radius in radii]):
            self.paint(distance, hu, label, box, None if where is None else where[box])

    def cones(self, points: Sequence[Point], radii: Sequence[float]) -> Iterator[tuple[int, Field, Box]]:
        """Round cones from point to point: number, distance, and the box that the distance was computed in."""
        for n in range(len(points) - 1):
            found = self.capsule(points[n], points[n + 1], radii[n], radii[n + 1])
            if found is not None:
                yield n, *found
