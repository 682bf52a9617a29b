"""Checks that a grid is one that a scan of a body or a specimen can have."""

from collections.abc import Sequence
from math import prod

import numpy as np

from inference_service.core.errors import InconsistentGeometry, InputTooLarge, NotAVolume
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.imaging.geometry import Affine, Shape

# Far beyond every real scan, so that only invalid headers are refused.
_MIN_SPACING_MM = 1e-4
_MAX_EXTENT_MM = 1e5
# The longest axis of a body or a specimen. Outside, a scan's spacing is probably in another unit.
_MIN_USUAL_EXTENT_MM = 1.0
_MAX_USUAL_EXTENT_MM = 3000.0

MIN_DETERMINANT = 1e-3
"""Volume spanned by unit vectors along the axes; below it, the axes lie in one plane."""


def require_volume(sizes: Sequence[int], max_voxels: int) -> Shape:
    """Returns the shape of an image that is one volume.

    Args:
        sizes: Number of voxels along each axis, at least 1.
        max_voxels: Limit on the voxels together.

    Raises:
        NotAVolume: There are not three axes.
        InputTooLarge: There are more than `max_voxels`.
    """
    if len(sizes) != 3:
        raise NotAVolume(f"expected one 3-D volume, got an image of shape {tuple(sizes)}")
    if prod(sizes) > max_voxels:
        raise InputTooLarge(f"the volume has {prod(sizes)} voxels; this service takes at most {max_voxels}")
    i, j, k = sizes
    return i, j, k


def require_valid_affine(affine: Affine, shape: Shape) -> None:
    """Checks that an affine is that of a grid which a scan can have.

    Raises:
        InconsistentGeometry: It is not.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
        extents_mm = spacing_mm * shape
    if not np.isfinite(affine).all() or (spacing_mm < _MIN_SPACING_MM).any() or (extents_mm > _MAX_EXTENT_MM).any():
        raise InconsistentGeometry(
            f"the header states an invalid spacing of {spacing_mm.tolist()} mm: expected at least {_MIN_SPACING_MM:g} "
            f"mm, and an extent of at most {_MAX_EXTENT_MM:g} mm"
        )
    if abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < MIN_DETERMINANT:
        raise InconsistentGeometry("the header's affine is singular: its axes lie in one plane")


def has_usual_extent(affine: Affine, shape: Shape) -> bool:
    """Returns True unless a scan is smaller or larger than a body or a specimen can be.

    >>> has_usual_extent(np.eye(4), (48, 40, 24)), has_usual_extent(np.diag([1e-3, 1e-3, 1e-3, 1]), (48, 40, 24))
    (True, False)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        longest_mm = (np.linalg.norm(affine[:3, :3], axis=0) * shape).max()
    return bool(_MIN_USUAL_EXTENT_MM <= longest_mm <= _MAX_USUAL_EXTENT_MM)


def extent_warnings(affine: Affine, shape: Shape) -> tuple[ReportWarning, ...]:
    """Warns of a scan that is smaller or larger than a body or a specimen can be."""
    if has_usual_extent(affine, shape):
        return ()
    message = (
        f"the scan measures {format_extent(affine, shape)} mm, and the longest axis of a body or a specimen is "
        f"{_MIN_USUAL_EXTENT_MM:g} to {_MAX_USUAL_EXTENT_MM:g} mm: its spacing may be in another unit"
    )
    return (ReportWarning(WarningCode.UNUSUAL_EXTENT, message),)


def format_extent(affine: Affine, shape: Shape) -> str:
    """The extent along each axis as text.

    >>> format_extent(np.diag([1.5, 1, 2, 1]), (48, 40, 24))
    '72 × 40 × 48'
    """
    return " × ".join(f"{extent:.4g}" for extent in np.linalg.norm(affine[:3, :3], axis=0) * shape)
