"""Whether a scan is of the modality that a model was made for: by what it states, and for CT by its values too."""

import numpy as np
from numpy.typing import NDArray

from inference_service.errors import ModalityMismatch

# Water is 0 HU: a CT has fat or air below it. Less than so wide a range is what a normalised image has.
_LEAST_RANGE_HU = 50.0
_REMEDY = "options.modality_check false has it segmented all the same"


def check_modality(expected: str, stated: str, voxels: NDArray[np.generic]) -> None:
    """Refuses what the model was not made for.

    Args:
        expected: The model's modality; "other" takes everything.
        stated: The scan's, in DICOM's words; empty where it does not say.
        voxels: Of any shape, finite.

    Raises:
        ModalityMismatch: The scan states another one, or the model takes CT and the values cannot be HU.
    """
    if expected == "other":
        return
    if stated and stated != expected:
        raise ModalityMismatch(f"the model takes {expected}, and the scan says that it is {_shown(stated)}; {_REMEDY}")
    if expected == "CT":
        least, greatest = float(voxels.min()), float(voxels.max())
        if least >= 0 or greatest - least < _LEAST_RANGE_HU:
            raise ModalityMismatch(
                f"the model takes CT in HU, and the scan's values are {least:g} to {greatest:g}: HU go below 0, where "
                f"there is fat or air; {_REMEDY}"
            )


def _shown(modality: str) -> str:
    """A modality is a code of a few letters; anything else could be any text."""
    return modality if modality.isascii() and modality.isalnum() and len(modality) <= 16 else "something else"
