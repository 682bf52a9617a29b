"""The labels of a side, for the comparison."""

from pathlib import Path

import numpy as np

from benchmarks.models import MAX_VOXELS
from inference_service.formats.nifti import read_nifti
from inference_service.formats.read_limits import ReadLimits


def copy_labels(mask: Path, labels: Path) -> None:
    """Reads the labels of a mask's file and writes them as .npy."""
    volume = read_nifti(mask, ReadLimits(MAX_VOXELS)).volume
    np.save(labels, volume.voxels)
