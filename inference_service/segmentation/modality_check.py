"""Checks that a scan has the modality that a model expects: by its header, and for CT by its values too."""

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import ModalityMismatch
from inference_service.formats.dicom.instance import UNKNOWN_TERM, ValueType

# Fat and air are below 0 HU (water): at least this share of a CT's voxels is.
_MIN_SHARE_BELOW_0 = 1e-3
# Values below air (-1000 HU) are padding and do not count.
_MIN_HU = -1100.0
# A normalised image has a narrower range; a wider one does not occur.
_MIN_RANGE_HU = 50.0
_MAX_RANGE_HU = 2.0**17
_MAX_SAMPLES = 2**21
# Values of an unspecified type (US) may be HU.
_TERMS_OF_CT = {"HU", "US"}
_REMEDY = "set options.modality_check to false to segment it all the same"


def check_modality(
    expected: str, stated: str, voxels: NDArray[np.generic], value_type: ValueType | None = None
) -> None:
    """Refuses a scan of another modality than the model's.

    Args:
        expected: The model's modality; a model of "other" takes every scan.
        stated: The scan's modality as a DICOM code, such as CT; empty where the scan does not state one.
        voxels: The scan's values, of any shape, finite.
        value_type: What the values measure by their header; None where the scan does not state it.

    Raises:
        ModalityMismatch: The scan states another modality, or the model takes CT and the values are not HU, by
            their header or their range.
    """
    if expected == "other":
        return
    if stated and stated != expected:
        raise ModalityMismatch(f"the model takes {expected}, and the scan is {stated}; {_REMEDY}")
    if expected == "CT" and value_type is not None and value_type.term not in _TERMS_OF_CT:
        term = "an unknown term" if value_type.term == UNKNOWN_TERM else value_type.term
        raise ModalityMismatch(
            f"the model takes CT in HU, and the scan's values are not HU: its {value_type.attribute} is {term}; "
            f"{_REMEDY}"
        )
    if expected == "CT" and not _may_be_hu(voxels):
        raise ModalityMismatch(
            f"the model takes CT in HU, and the scan's values range from {voxels.min():g} to {voxels.max():g}, which "
            f"cannot be HU: fat and air are below 0; {_REMEDY}"
        )


def _may_be_hu(voxels: NDArray[np.generic]) -> bool:
    step = max(1, round((voxels.size / _MAX_SAMPLES) ** (1 / 3)))
    values = voxels[(slice(None, None, step),) * voxels.ndim].astype(np.float32)
    values = values[values >= _MIN_HU]
    if not values.size or np.mean(values < 0) < _MIN_SHARE_BELOW_0:
        return False
    return _MIN_RANGE_HU <= float(voxels.max()) - float(values.min()) <= _MAX_RANGE_HU
