"""The order of a series' slices and the grid that they lie on. Pure geometry.

Spacing is taken from positions alone. Slices that do not lie on an even grid at right angles are refused, or described
here for `reader` to interpolate and align if the request tolerates them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.task_message import Tolerance
from inference_service.core.errors import InconsistentGeometry, NotAVolume
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.dicom.instance import Frame, Instance, Slice
from inference_service.formats.dicom.series.consistency import (
    MIN_SPACING_MM,
    check_identifiers,
    check_one_slice_per_position,
    check_uniform,
    direction_cosines,
    format_mm,
)
from inference_service.formats.dicom.series.gantry_tilt import is_tilted, tilt_warning
from inference_service.formats.dicom.series.interleaving import acquisition_warnings, check_not_interleaved
from inference_service.formats.dicom.series.slice_gaps import (
    is_uneven,
    sparse_slices_warnings,
    uneven_spacing_warning,
    usual_spacing_mm,
)
from inference_service.imaging.geometry import LPS_TO_RAS, Affine, Shape

# Deviation of a direction's length from 1, and of the cosine between row and column from 0, that is taken for rounding:
# headers are decimal numbers of few digits.
_MAX_COSINE_ERROR = 5e-3


@dataclass(frozen=True)
class SeriesGeometry:
    """The slices of a volume, in order along the normal of their planes, and the grid that they lie on.

    Attributes:
        slices: In the order of the volume's third axis.
        affine: Index (column, row, slice) to RAS+ mm; sheared if `tilted`, and with the mean spacing if `uneven`.
        shifts_px: Shape (slices, 2): how far along a row and along a column, in pixels, each slice lies from its place
            in a stack at right angles.
        heights_mm: Shape (slices,): distance of each slice's plane from that of the first, ascending from 0.
        spacing_mm: Distance of slices; the usual one if `uneven`.
        tilted: Whether the stack is not at right angles to its planes.
        uneven: Whether slices are unevenly spaced.
        warnings: Warnings for the user of the mask.
    """

    slices: tuple[Slice, ...]
    affine: Affine
    shifts_px: NDArray[np.float64]
    heights_mm: NDArray[np.float64]
    spacing_mm: float
    tilted: bool
    uneven: bool
    warnings: tuple[ReportWarning, ...]

    @property
    def shape(self) -> Shape:
        """Columns, rows, slices."""
        pixels = self.slices[0].instance.pixels
        return pixels.columns, pixels.rows, len(self.slices)


def find_geometry(slices: Sequence[Slice], tolerated: Collection[Tolerance] = ()) -> SeriesGeometry:
    """Orders the slices of a series and finds the grid that they lie on.

    Args:
        slices: The slices of one series.
        tolerated: Deviations from an even grid at right angles that are not refused.

    Raises:
        InconsistentGeometry: Slices differ in size, orientation, pixel spacing or frame of reference, share positions,
            are of several acquisitions, do not lie along one line, or are unevenly spaced.
        MissingSlices: There are gaps between slices.
        GantryTilt: The stack is not at right angles to its planes.
        NotAVolume: The series is several volumes, or a single slice without a thickness.
    """
    check_uniform(slices)
    check_identifiers(instances_of(slices))
    normal = plane_axes(slices[0].frame)[:, 2]
    slices = sorted(slices, key=lambda slice_: float(np.dot(slice_.frame.position_mm, normal)))
    # The lowest slice's axes, so that the grid does not depend on the order of files: directions differ by rounding.
    axes = plane_axes(slices[0].frame)
    positions_mm = np.array([slice_.frame.position_mm for slice_ in slices])
    offsets_mm = (positions_mm - positions_mm[0]) @ axes
    heights_mm = offsets_mm[:, 2]
    spacing_mm, warnings = _find_spacing(slices, heights_mm)
    uneven = is_uneven(heights_mm, spacing_mm)
    tilted = is_tilted(offsets_mm, min(slices[0].frame.pixel_spacing_mm))
    affine = _find_affine(slices[0].frame, axes, offsets_mm, spacing_mm, tilted=tilted)
    if uneven:
        gaps_mm = np.diff(heights_mm)
        spacing_mm = usual_spacing_mm(gaps_mm)
        warnings.append(uneven_spacing_warning(gaps_mm, spacing_mm, tolerated="uneven_spacing" in tolerated))
    if tilted:
        warnings.append(tilt_warning(offsets_mm, tolerated="gantry_tilt" in tolerated))
    shifts_mm = offsets_mm[:, :2] if tilted else np.zeros((len(slices), 2))
    return SeriesGeometry(
        slices=tuple(slices),
        affine=affine,
        shifts_px=shifts_mm / np.array(slices[0].frame.pixel_spacing_mm),
        heights_mm=heights_mm,
        spacing_mm=spacing_mm,
        tilted=tilted,
        uneven=uneven,
        warnings=tuple(warnings),
    )


def _find_spacing(slices: Sequence[Slice], heights_mm: NDArray[np.float64]) -> tuple[float, list[ReportWarning]]:
    """Mean spacing of slices, or the thickness of a single one, and warnings about it."""
    warnings: list[ReportWarning] = []
    if len(slices) > 1:
        spacing_mm = float(heights_mm[-1]) / (len(slices) - 1)
        check_one_slice_per_position(heights_mm)
        check_not_interleaved(slices, float(np.median(np.diff(heights_mm))))
        warnings += sparse_slices_warnings(spacing_mm, [slice_.instance.slice_thickness_mm for slice_ in slices])
    else:
        thickness_mm = slices[0].instance.slice_thickness_mm
        if thickness_mm is None:
            raise NotAVolume("the input is a single slice without a thickness: expected SliceThickness, or more slices")
        spacing_mm = thickness_mm
        message = f"the scan is a single slice: volumes depend on its SliceThickness, {thickness_mm:g} mm"
        warnings.append(ReportWarning(WarningCode.SINGLE_SLICE, message))
    return spacing_mm, [*warnings, *acquisition_warnings(slices)]


def _find_affine(
    first: Frame, axes: NDArray[np.float64], offsets_mm: NDArray[np.float64], spacing_mm: float, *, tilted: bool
) -> Affine:
    """Index (column, row, slice) to RAS+ mm.

    Args:
        first: The frame of the lowest slice.
        axes: Unit vectors along this frame's rows, along its columns and normal to both, as columns.
        offsets_mm: Shape (slices, 3): offset of each slice from the first one along these axes.
        spacing_mm: Distance of slices, if there is a single one.
        tilted: Whether the stack is not at right angles to its planes.
    """
    steps = len(offsets_mm) - 1
    last_mm = offsets_mm[-1] if tilted else np.array([0.0, 0.0, offsets_mm[-1, 2] if steps else spacing_mm])
    affine = np.eye(4)
    affine[:3, :2] = axes[:, :2] * np.array(first.pixel_spacing_mm)
    affine[:3, 2] = axes @ last_mm / max(1, steps)
    affine[:3, 3] = first.position_mm
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return affine


def instances_of(slices: Sequence[Slice]) -> list[Instance]:
    """The instances of slices, each once."""
    return list({slice_.instance.path: slice_.instance for slice_ in slices}.values())


def plane_axes(frame: Frame) -> NDArray[np.float64]:
    """Unit vectors along a row, along a column and normal to both, as columns; LPS+, at exactly right angles.

    Raises:
        InconsistentGeometry: The frame's directions are not at right angles or of length 1, or its pixels have no size.

    >>> plane_axes(Frame(0, (0, 0, 0), (0, 1, 0), (0, 0, -1), (1, 1), 1, 0))[0].tolist()
    [0.0, 0.0, -1.0]
    """
    row, column = direction_cosines(frame)
    lengths = np.linalg.norm([row, column], axis=1)
    error = np.abs([*(lengths - 1), row @ column]).max()
    if error > _MAX_COSINE_ERROR or min(frame.pixel_spacing_mm) <= MIN_SPACING_MM:
        raise InconsistentGeometry(
            f"a slice's axes make no sense: directions of length {format_mm(lengths)} with a cosine of "
            f"{row @ column:.4g} between them, pixels of {format_mm(frame.pixel_spacing_mm)} mm; expected unit vectors "
            "at right angles, and pixels of a size"
        )
    row = row / lengths[0]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    return np.column_stack([row, np.cross(normal, row), normal])
