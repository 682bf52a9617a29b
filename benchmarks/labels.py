"""Labels as sides leave them for the comparison."""

from pathlib import Path

import numpy as np

from benchmarks.models import MAX_VOXELS
from inference_service.formats.nifti import read_nifti


def copy_labels(mask: Path, labels: Path) -> None:
    """Reads a mask's file and writes its labels as .npy."""
    volume, _ = read_nifti(mask, max_voxels=MAX_VOXELS)
    np.save(labels, volume.voxels)
