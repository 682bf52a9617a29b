"""Whether a scan is of the modality that a model was made for: by what it states, and for CT by its values too."""

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import ModalityMismatch

# Water is 0 HU: a CT has fat or air below it, and not by chance in a few voxels. What is below air is padding.
_LEAST_SHARE_BELOW_0, _LEAST_HU = 1e-3, -1100.0
# A narrower range is what a normalised image has, a wider one nothing real.
_LEAST_RANGE_HU, _MOST_RANGE_HU = 50.0, 2.0**17
_MOST_SAMPLES = 2**21
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
        raise ModalityMismatch(f"the model takes {expected}, and the scan says that it is {stated}; {_REMEDY}")
    if expected == "CT" and not _may_be_hu(voxels):
        raise ModalityMismatch(
            f"the model takes CT in HU, and the scan's values are {voxels.min():g} to {voxels.max():g}: HU go below 0, "
            f"where there is fat or air; {_REMEDY}"
        )


def _may_be_hu(voxels: NDArray[np.generic]) -> bool:
    step = max(1, round((voxels.size / _MOST_SAMPLES) ** (1 / 3)))
    values = voxels[(slice(None, None, step),) * voxels.ndim].astype(np.float32)
    values = values[values >= _LEAST_HU]
    if not values.size or np.mean(values < 0) < _LEAST_SHARE_BELOW_0:
        return False
    return _LEAST_RANGE_HU <= float(voxels.max()) - float(values.min()) <= _MOST_RANGE_HU
