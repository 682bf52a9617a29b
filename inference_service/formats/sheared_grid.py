"""Aligns the planes of a volume on a sheared grid for the network, or refuses a grid that cannot be aligned."""

from math import prod

from inference_service.core.errors import InconsistentGeometry, InputTooLarge
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.read_limits import ReadLimits
from inference_service.imaging.geometry import Volume
from inference_service.imaging.shear import Shear, align_sheared, find_shear, shifts_px
from inference_service.imaging.slice_alignment import AlignedVolume, aligned_shape

# A grid without right angles cannot be aligned. Up to this shear the network sees it as if its axes were at right
# angles; a patient sheared further is unlike anything a network was trained on.
_MAX_UNALIGNED_SHEAR_DEGREES = 10.0


def align_grid(volume: Volume, limits: ReadLimits) -> tuple[AlignedVolume | None, tuple[ReportWarning, ...]]:
    """Aligns the planes of a volume whose grid is sheared.

    Args:
        volume: The scan.
        limits: The largest volume that is made.

    Returns:
        The aligned volume, or None where the network gets the volume itself; and warnings for the user of the mask.

    Raises:
        InconsistentGeometry: No two axes of the grid are at right angles, and it is sheared far.
        InputTooLarge: The aligned volume would be larger than the limits allow.
    """
    shear = find_shear(volume.affine)
    if shear is None:
        return None, ()
    if shear.axes is None:
        return None, (_unaligned_warning(shear),)
    message = (
        f"the grid's axes deviate from right angles by {shear.degrees:.3g}°: for the network its planes were aligned "
        "by shifts of whole voxels, and the mask was shifted back"
    )
    return _align(volume, shear, limits), (ReportWarning(WarningCode.SHEAR_ALIGNED, message),)


def _unaligned_warning(shear: Shear) -> ReportWarning:
    """Refuses a grid with no two axes at right angles if it is far from them, and returns the warning otherwise."""
    text = f"no two axes of the grid are at right angles; the deviation is up to {shear.degrees:.3g}°"
    if shear.degrees > _MAX_UNALIGNED_SHEAR_DEGREES:
        raise InconsistentGeometry(
            f"{text}, and at most {_MAX_UNALIGNED_SHEAR_DEGREES:g}° are accepted: resample the scan to a grid with "
            "axes at right angles"
        )
    return ReportWarning(WarningCode.SHEAR_IGNORED, f"{text}, and the network saw the scan without this shear")


def _align(volume: Volume, shear: Shear, limits: ReadLimits) -> AlignedVolume:
    i, j, k = (volume.shape[axis] for axis in shear.axes or ())
    voxels = prod(aligned_shape((i, j, k), shifts_px(shear, k)))
    if voxels > limits.max_voxels:
        raise InputTooLarge(
            f"the sheared grid has {voxels} voxels once its planes are aligned; this service takes at most "
            f"{limits.max_voxels}"
        )
    limits.require_memory(voxels * volume.voxels.dtype.itemsize)
    return align_sheared(volume, shear, background=volume.voxels.min().item())
