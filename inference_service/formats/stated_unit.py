"""Brings an affine into millimetres by the unit of length that a header states, unless the unit makes no sense."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.task_message import Tolerance
from inference_service.core.errors import InconsistentGeometry
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.grid_check import format_extent, has_usual_extent
from inference_service.imaging.geometry import Affine, Shape


@dataclass(frozen=True)
class StatedUnit:
    """The unit of length of a header.

    Attributes:
        field: The field of the header that states it.
        name: Its name, such as micron.
        mm: Its length along each axis of space.
    """

    field: str
    name: str
    mm: tuple[float, float, float]


def convert_to_mm(
    affine: NDArray[np.float64], unit: StatedUnit, shape: Shape, tolerated: Collection[Tolerance]
) -> tuple[Affine, tuple[ReportWarning, ...]]:
    """Converts an affine to millimetres.

    Args:
        affine: Voxel index to RAS+ in the header's unit; need not be finite.
        unit: The header's unit.
        shape: The volume's.
        tolerated: Deviations that are not refused.

    Returns:
        Voxel index to RAS+ mm, and warnings.

    Raises:
        InconsistentGeometry: The scan would be of a usual size in millimetres, and is not in the stated unit.

    >>> affine, _ = convert_to_mm(np.eye(4), StatedUnit("xyzt_units", "metre", (1e3, 1e3, 1e3)), (1, 1, 1), ())
    >>> affine.diagonal().tolist()
    [1000.0, 1000.0, 1000.0, 1.0]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        in_mm = np.vstack([affine[:3] * np.reshape(unit.mm, (3, 1)), [0, 0, 0, 1]]).astype(np.float64)
    if unit.mm == (1, 1, 1) or has_usual_extent(in_mm, shape) or not has_usual_extent(affine, shape):
        return in_mm, ()
    text = (
        f"the header's {unit.field} states {unit.name}, by which the scan measures {format_extent(in_mm, shape)} mm; "
        f"in millimetres it would measure {format_extent(affine, shape)}"
    )
    if "unusual_extent" not in tolerated:
        raise InconsistentGeometry(
            f"{text}: correct {unit.field}, or set options.tolerate to unusual_extent if the {unit.name} is right"
        )
    return in_mm, (ReportWarning(WarningCode.IMPLAUSIBLE_UNIT, f"{text}: the stated unit was used"),)
