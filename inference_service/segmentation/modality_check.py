"""Checks that a scan has the modality that a model expects: by its header, and for CT by its values too."""

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import ModalityMismatch
from inference_service.formats.dicom.instance import UNKNOWN_TERM, ValueType
from inference_service.imaging.hounsfield import may_be_hu

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
    if expected == "CT" and not may_be_hu(voxels):
        raise ModalityMismatch(
            f"the model takes CT in HU, and the scan's values range from {voxels.min():g} to {voxels.max():g}, which "
            f"cannot be HU: fat and air are below 0; {_REMEDY}"
        )
