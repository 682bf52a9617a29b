"""In which order the slices of a series lie, and where in the patient. Pure geometry.

Spacing comes from positions alone. What does not fit on an even, straight grid is refused with its numbers; only what
the request tolerates is passed on, for `regrid` to deal with.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import atan2, degrees

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.task_message import Tolerance
from inference_service.core.errors import GantryTilt, InconsistentGeometry, MissingSlices, NotAVolume
from inference_service.formats.dicom.image import Image, Plane
from inference_service.imaging.geometry import Affine

# DICOM's world is LPS+, ours RAS+.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Headers are decimal numbers of few digits. Directions may be off by so much in themselves, and between slices.
_MOST_ERROR_OF_A_COSINE = 5e-3
_MOST_DIFFERENCE_OF_COSINES = 1e-3
_MOST_RATIO_OF_PIXELS = 1e-3
# Least distance of slices, and how far one may lie from where an even spacing has it, in mm and in spacings.
_LEAST_SPACING_MM = 1e-3
_MOST_STRAY_MM, _MOST_STRAY = 0.1, 0.1
# Drift across the planes that is more than rounding. A stack that drifts less is straight.
_LEAST_DRIFT_MM, _LEAST_TILT_DEGREES = 0.1, 0.05
# Where gaps so much wider than the narrowest one take turns with others so often, no slices are missing: some are of
# another acquisition.
_WIDE_GAP, _MOST_TURNS = 2.5, 0.5
# Or where one is so much narrower than is usual.
_NARROW_GAP = 0.1
# So many wide gaps in one piece are another spacing, and no slices that are missing.
_LEAST_WIDE_STRETCH = 3
# More is not bridged, whatever is tolerated: what lies between would be made up.
_MOST_GAP_MM = 10.0
# Slices so many of their thicknesses apart leave out as much as they show.
_MOST_THICKNESSES = 1.9


@dataclass(frozen=True)
class Slice:
    """One frame of a series."""

    image: Image
    plane: Plane


@dataclass(frozen=True)
class Series:
    """The slices of a volume, ordered along the normal of their planes.

    Attributes:
        slices: In the order of the volume's third axis.
        affine: Columns, rows and slices to RAS+ mm: sheared where they are tilted, of the mean spacing where they are
            uneven, and else of the even one.
        shifts_px: Shape (slices, 2): how far along a row and along a column each slice lies from where it would if all
            were stacked at right angles, in pixels.
        heights_mm: Shape (slices,): distance of each one's plane from that of the first.
        spacing_mm: The even spacing, or with uneven spacing the usual one.
        tilted: Whether the stack is not at right angles to its planes.
        uneven: Whether spacings differ.
        warnings: What a reader of the mask should know.
    """

    slices: tuple[Slice, ...]
    affine: Affine
    shifts_px: NDArray[np.float64]
    heights_mm: NDArray[np.float64]
    spacing_mm: float
    tilted: bool
    uneven: bool
    warnings: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        layout = self.slices[0].image.layout
        return layout.columns, layout.rows, len(self.slices)


def lay_out(images: Sequence[Image], tolerated: Collection[Tolerance] = ()) -> Series:
    """Orders slices and finds the grid that they lie on.

    Args:
        images: Of one series.
        tolerated: What is not refused.

    Raises:
        InconsistentGeometry: Slices differ in size, orientation, pixel spacing or frame of reference, lie upon each
            other, astray or unevenly.
        MissingSlices: There are gaps.
        GantryTilt: The stack is not at right angles to its planes.
        NotAVolume: There are several volumes, or a single slice without a thickness.
    """
    _check_positions(images)
    slices = [Slice(image, plane) for image in images for plane in image.planes]
    _check_alike(slices)
    _check_names(images)
    normal = plane_axes(slices[0].plane)[:, 2]
    slices.sort(key=lambda piece: float(np.dot(piece.plane.position_mm, normal)))
    # Of the lowest slice, whichever came first: directions differ by rounding.
    axes = plane_axes(slices[0].plane)
    positions_mm = np.array([piece.plane.position_mm for piece in slices])
    places_mm = (positions_mm - positions_mm[0]) @ axes
    if len(slices) == 1:
        spacing_mm, warnings = _thickness(slices[0])
    else:
        spacing_mm, warnings = float(places_mm[-1, 2]) / (len(slices) - 1), []
        _check_apart(places_mm[:, 2])
        warnings += _on_sparse(spacing_mm, [piece.image.thickness_mm for piece in slices])
    warnings += _on_acquisitions([piece.image.acquisition for piece in slices])
    uneven = _is_uneven(places_mm[:, 2], spacing_mm)
    tilted = _is_tilted(places_mm, min(slices[0].plane.pixel_mm))
    if uneven:
        spacing_mm = _usual_mm(np.diff(places_mm[:, 2]))
        warnings.append(_on_uneven(np.diff(places_mm[:, 2]), spacing_mm, tolerated="uneven_spacing" in tolerated))
    if tilted:
        warnings.append(_on_tilt(places_mm, tolerated="gantry_tilt" in tolerated))
    drift_mm = places_mm[:, :2] if tilted else np.zeros((len(slices), 2))
    pixel_mm = np.array(slices[0].plane.pixel_mm)
    step_mm = (*drift_mm[-1], places_mm[-1, 2]) if len(slices) > 1 else (0.0, 0.0, spacing_mm)
    affine = np.eye(4)
    affine[:3, :2] = axes[:, :2] * pixel_mm
    affine[:3, 2] = axes @ np.array(step_mm) / max(1, len(slices) - 1)
    affine[:3, 3] = positions_mm[0]
    return Series(
        slices=tuple(slices),
        affine=_LPS_TO_RAS @ affine,
        shifts_px=drift_mm / pixel_mm,
        heights_mm=places_mm[:, 2],
        spacing_mm=spacing_mm,
        tilted=tilted,
        uneven=uneven,
        warnings=tuple(warnings),
    )


def _check_positions(images: Sequence[Image]) -> None:
    without = sum(not image.planes for image in images)
    if without == len(images):
        raise NotAVolume(
            "the images do not say where in the patient they lie, by ImagePositionPatient, ImageOrientationPatient and "
            "PixelSpacing"
        )
    if without:
        raise InconsistentGeometry(f"{without} of the series' {len(images)} images do not say where they lie")


def _check_names(images: Sequence[Image]) -> None:
    modalities = sorted({image.modality for image in images})
    if len(modalities) > 1:
        raise InconsistentGeometry(f"the series' images differ in modality: {', '.join(modalities)}")
    if len({image.study_uid for image in images}) > 1:
        raise InconsistentGeometry("the series' images are of several studies")
    names = [image.sop_instance_uid for image in images if image.sop_instance_uid]
    if len(set(names)) < len(names):
        raise InconsistentGeometry("images are there more than once, or share a SOPInstanceUID")


def _check_alike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    for number, piece in enumerate(slices):
        here, there = piece.image.layout, first.image.layout
        if (here.rows, here.columns) != (there.rows, there.columns):
            raise InconsistentGeometry(
                f"slices differ in size: {there.rows} × {there.columns} and {here.rows} × {here.columns} pixels"
            )
        if not np.allclose(piece.plane.pixel_mm, first.plane.pixel_mm, rtol=_MOST_RATIO_OF_PIXELS, atol=0):
            raise InconsistentGeometry(
                f"slices differ in pixel spacing: {_mm(first.plane.pixel_mm)} and {_mm(piece.plane.pixel_mm)} mm"
            )
        difference = np.abs(_cosines(piece.plane) - _cosines(first.plane)).max()
        if difference > _MOST_DIFFERENCE_OF_COSINES:
            raise InconsistentGeometry(
                f"slices differ in orientation: image {number + 1} by up to {difference:.4g} in a direction cosine"
            )
        if piece.image.frame_of_reference_uid != first.image.frame_of_reference_uid:
            raise InconsistentGeometry("slices refer to different frames of reference: their positions do not compare")


def _cosines(plane: Plane) -> NDArray[np.float64]:
    """Shape (2, 3): along a row, along a column."""
    return np.array([plane.along_row, plane.along_column])


def plane_axes(plane: Plane) -> NDArray[np.float64]:
    """Unit vectors along a row, along a column and normal to them, as columns; LPS+.

    >>> plane_axes(Plane(0, (0, 0, 0), (0, 1, 0), (0, 0, -1), (1, 1), 1, 0))[0].tolist()
    [0.0, 0.0, -1.0]
    """
    row, column = _cosines(plane)
    lengths = np.linalg.norm([row, column], axis=1)
    if (
        np.abs([*(lengths - 1), row @ column]).max() > _MOST_ERROR_OF_A_COSINE
        or min(plane.pixel_mm) <= _LEAST_SPACING_MM
    ):
        raise InconsistentGeometry(
            f"a plane's axes make no sense: of lengths {_mm(lengths)}, at a cosine of {row @ column:.4g} to each "
            f"other, with pixels of {_mm(plane.pixel_mm)} mm"
        )
    row = row / lengths[0]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    return np.column_stack([row, np.cross(normal, row), normal])


def _thickness(single: Slice) -> tuple[float, list[str]]:
    """A lone slice lies where its pixels say; its thickness is all that is taken on trust."""
    thickness_mm = single.image.thickness_mm
    if thickness_mm is None:
        raise NotAVolume("the input is a single slice, and does not say how thick")
    return thickness_mm, [
        f"the scan is a single slice: volumes rest on the thickness that it states, {thickness_mm:g} mm"
    ]


def _check_apart(heights_mm: NDArray[np.float64]) -> None:
    starts = np.flatnonzero(np.diff(heights_mm, prepend=-np.inf) >= _LEAST_SPACING_MM)
    counts = np.diff(starts, append=len(heights_mm))
    if counts.max() == 1:
        return
    if counts.min() == counts.max():
        raise NotAVolume(
            f"the series is {counts[0]} volumes, such as phases or echoes: each of {len(counts)} positions is that of "
            f"{counts[0]} slices"
        )
    raise InconsistentGeometry(
        f"slices are there more than once: {np.count_nonzero(counts > 1)} of {len(counts)} positions have several"
    )


def _on_sparse(spacing_mm: float, thicknesses_mm: Sequence[float | None]) -> list[str]:
    """A warning where much of the patient lies between slices: some may be missing, which positions cannot tell."""
    known_mm = [thickness for thickness in thicknesses_mm if thickness is not None]
    thickest_mm = max(known_mm, default=_MOST_GAP_MM / _MOST_THICKNESSES)
    if spacing_mm <= min(_MOST_GAP_MM, _MOST_THICKNESSES * thickest_mm):
        return []
    stated = f", and {thickest_mm:.4g} mm thick by what they state" if known_mm else ""
    return [f"slices are {spacing_mm:.4g} mm apart{stated}: if any are missing, it does not show"]


def _on_acquisitions(numbers: Sequence[int | None]) -> list[str]:
    """A warning where slices of several acquisitions alternate, as they may not be of one moment."""
    count, changes = len(set(numbers)), sum(one != other for one, other in pairwise(numbers))
    return [f"slices of {count} acquisitions alternate: they may not be of one moment"] if changes >= count else []


def _is_uneven(heights_mm: NDArray[np.float64], spacing_mm: float) -> bool:
    stray_mm = np.abs(heights_mm - np.arange(len(heights_mm)) * spacing_mm).max()
    return bool(stray_mm > min(_MOST_STRAY_MM, _MOST_STRAY * spacing_mm))


def _usual_mm(gaps_mm: NDArray[np.float64]) -> float:
    """The spacing of slices that have none missing between them: the narrowest that more than one in ten gaps has.

    >>> _usual_mm(np.array([2.0, 4.0, 2.1]))
    2.05
    """
    return float(np.median(gaps_mm[gaps_mm < 1.5 * np.quantile(gaps_mm, 0.1, method="higher")]))


def _on_uneven(gaps_mm: NDArray[np.float64], usual_mm: float, *, tolerated: bool) -> str:
    """The warning, or the refusal, that spacings differ."""
    steps = np.rint(gaps_mm / usual_mm)
    whole = bool((np.abs(gaps_mm - steps * usual_mm) <= steps * _MOST_STRAY * usual_mm).all())
    widest = int(gaps_mm.argmax())
    where = f"between slices {widest + 1} and {widest + 2} of {len(gaps_mm) + 1} lie {gaps_mm[widest]:.4g} mm"
    missing = int(steps.sum()) - len(gaps_mm)
    wide = gaps_mm > _WIDE_GAP * gaps_mm.min()
    if np.count_nonzero(np.diff(wide)) > _MOST_TURNS * len(wide) or gaps_mm.min() < _NARROW_GAP * usual_mm:
        raise InconsistentGeometry(
            f"slices lie nearly upon one another, as of two acquisitions: {gaps_mm.min():.4g} to {gaps_mm.max():.4g} "
            "mm apart"
        )
    stretches = np.count_nonzero(np.diff(steps > 1, prepend=False) & (steps > 1))
    if stretches == 1 and np.count_nonzero(steps > 1) >= _LEAST_WIDE_STRETCH:
        whole = False
    if whole and missing:
        text = f"{missing} slice{'s are' if missing > 1 else ' is'} missing: {where}, elsewhere {usual_mm:.4g} mm"
    else:
        text = f"slices are {gaps_mm.min():.4g} to {gaps_mm.max():.4g} mm apart: {where}"
    if not tolerated or gaps_mm[widest] > max(_MOST_GAP_MM, 1.5 * usual_mm):
        raise (MissingSlices if whole and missing else InconsistentGeometry)(text)
    return f"{text}; the scan was interpolated to even slices, and the mask lies on those"


def _is_tilted(places_mm: NDArray[np.float64], pixel_mm: float) -> bool:
    """Whether slices drift aside by more than rounding, or by half a pixel in all.

    Raises:
        InconsistentGeometry: They do not drift along one straight line.
    """
    if len(places_mm) == 1:
        return False
    along = places_mm[:, 2:] / places_mm[-1, 2]
    stray_mm = np.linalg.norm(places_mm[:, :2] - along * places_mm[-1, :2], axis=1).max()
    if stray_mm > _MOST_STRAY_MM:
        raise InconsistentGeometry(f"slices do not lie along one line: one is {stray_mm:.4g} mm beside it")
    drift_mm = float(np.linalg.norm(places_mm[-1, :2]))
    return drift_mm > _LEAST_DRIFT_MM and (_tilt_degrees(places_mm) > _LEAST_TILT_DEGREES or drift_mm > pixel_mm / 2)


def _tilt_degrees(places_mm: NDArray[np.float64]) -> float:
    return degrees(atan2(float(np.linalg.norm(places_mm[-1, :2])), float(places_mm[-1, 2])))


def _on_tilt(places_mm: NDArray[np.float64], *, tolerated: bool) -> str:
    """The warning, or the refusal, of a tilted stack."""
    drift_mm = float(np.linalg.norm(places_mm[-1, :2]))
    text = (
        f"the slices are tilted by {_tilt_degrees(places_mm):.3g}° against their stack: they drift by {drift_mm:.4g} mm"
    )
    if not tolerated:
        raise GantryTilt(text)
    return (
        f"{text}; they were moved in line for the network, and the mask back with them, onto a sheared grid: viewers "
        "that take none, such as those built on ITK, need a DICOM segmentation"
    )


def _mm(values: Iterable[float]) -> str:
    return " × ".join(f"{value:.6g}" for value in values)
