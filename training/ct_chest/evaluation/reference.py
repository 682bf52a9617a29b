"""Segments the lungs of a real scan by thresholds and connectivity alone, as a reference independent of the network.

After S. Hu, E. Hoffman and J. Reinhardt, "Automatic lung segmentation", IEEE TMI 20 (2001) 490: threshold,
connectivity, airways by region growing, left and right apart, closing.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.ct_chest.labels import LUNG_LEFT, LUNG_RIGHT
from training.ct_chest.synthetic.canvas import Mask

# Half way between lung and soft tissue.
LUNG_BELOW_HU = -400
# Airways that grow larger than this have leaked into the lung.
_AIRWAYS_ML = 70.0
_AIRWAYS_HU = range(-800, -1000, -10)
_MIN_LUNG_ML = 50.0
_CLOSED_MM = 6.0


def reference_lungs(hu: NDArray[np.int16], spacing_mm: float) -> NDArray[np.uint8]:
    """Labels both lungs, with the vessels inside them; trachea, main bronchi and all other air are background.

    Args:
        hu: Shape (i, j, k), RAS, isotropic; the trachea is in the uppermost planes.
        spacing_mm: Size of a voxel.
    """
    voxel_ml = spacing_mm**3 / 1000
    air = ndimage.median_filter(hu, 3) < LUNG_BELOW_HU
    airways = _airways(hu, air, voxel_ml)
    lungs = _large(air & ~airways, voxel_ml) & ~_outside(hu, air)
    apart = _apart(lungs, spacing_mm)
    ball = _ball(_CLOSED_MM / spacing_mm)
    out = np.zeros(hu.shape, np.uint8)
    for label in (LUNG_LEFT, LUNG_RIGHT):
        pads = len(ball) // 2
        padded = np.pad(apart == label, pads, mode="edge")
        closed = ndimage.binary_closing(padded, ball)[pads:-pads, pads:-pads, pads:-pads]
        for k in range(closed.shape[2]):
            closed[:, :, k] = ndimage.binary_fill_holes(closed[:, :, k])
        out[closed & (out == 0) & ~airways] = label
    return out


def _outside(hu: NDArray[np.int16], air: Mask) -> Mask:
    """Air that touches the front of the scan, which no lung does."""
    components, _ = ndimage.label(air)
    front = np.unique(components[:, -3:, :])
    touching: Mask = np.isin(components, front[front > 0])
    return touching


def _airways(hu: NDArray[np.int16], air: Mask, voxel_ml: float) -> Mask:
    """Grows the airways from the trachea with the highest threshold that does not leak; adds partial volume."""
    smooth = ndimage.median_filter(hu, 3)
    seed = _trachea_seed(smooth)
    for threshold in _AIRWAYS_HU:
        components, _ = ndimage.label(smooth < threshold)
        grown: Mask = components == components[seed]
        if components[seed] and grown.sum() * voxel_ml < _AIRWAYS_ML:
            return np.asarray(ndimage.binary_dilation(grown, iterations=2, mask=air))
    raise ValueError("no airways were found that do not leak")


def _trachea_seed(smooth: NDArray[np.int16]) -> tuple[int, int, int]:
    """The centre of the small region of air in the uppermost planes that is nearest to the planes' middle."""
    k = smooth.shape[2] - 4
    components, count = ndimage.label(smooth[:, :, k] < -930)
    middle = np.array(smooth.shape[:2]) / 2
    centres = [np.argwhere(components == n).mean(0) for n in range(1, count + 1) if 20 < (components == n).sum() < 400]
    i, j = min(centres, key=lambda centre: float(np.abs(centre - middle).sum()))
    return round(float(i)), round(float(j)), k


def _large(mask: Mask, voxel_ml: float) -> Mask:
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    kept: Mask = (sizes * voxel_ml > _MIN_LUNG_ML)[components]
    return kept


def _apart(lungs: Mask, spacing_mm: float) -> NDArray[np.uint8]:
    """Separates left and right: erosion leaves two large cores, and each voxel joins the nearer one."""
    for steps in range(0, 8):
        eroded = ndimage.binary_erosion(lungs, iterations=steps, border_value=1) if steps else lungs
        components, count = ndimage.label(eroded)
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        if count >= 2:
            first, second = np.argsort(sizes)[-2:]
            if sizes[first] > 0.2 * sizes[second]:
                break
    else:
        raise ValueError("the lungs do not come apart")
    cores = [components == first, components == second]
    cores.sort(key=lambda core: float(np.argwhere(core)[:, 0].mean()))
    far = [ndimage.distance_transform_edt(~core) for core in cores]
    # The axis runs to the right: the smaller index is the left lung.
    return np.where(lungs, np.where(far[0] < far[1], LUNG_LEFT, LUNG_RIGHT), 0).astype(np.uint8)


def _ball(radius: float) -> Mask:
    reach = int(np.ceil(radius))
    i, j, k = np.ogrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1]
    ball: Mask = i**2 + j**2 + k**2 <= radius**2
    return ball
