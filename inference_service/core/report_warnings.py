"""Warnings for the user of a mask, and their codes, which are stable: upstreams rely on them.

A job with a warning succeeds. Warnings appear in `report.json`, in the job's row and on the command line. A code names
a kind of warning and is never an error's code; the sentence states the values, without patient data.
"""

from dataclasses import dataclass
from enum import StrEnum


class WarningCode(StrEnum):
    """The codes of warnings; the values are part of the contract, and `docs/task-contract.md` explains them."""

    # Slices of a DICOM series.
    SINGLE_SLICE = "single_slice"
    """The scan is one slice: volumes depend on its SliceThickness."""
    SPARSE_SLICES = "sparse_slices"
    """Slices are so far apart that missing ones cannot be detected."""
    SLICES_INTERPOLATED = "slices_interpolated"
    """Unevenly spaced slices were interpolated, as the request tolerates it."""
    GANTRY_TILT_ALIGNED = "gantry_tilt_aligned"
    """The slices of a tilted gantry were aligned for the network, as the request tolerates it."""
    ALTERNATING_ACQUISITIONS = "alternating_acquisitions"
    """Slices of several acquisitions seem to lie between each other."""
    FRAME_POSITIONS_DERIVED = "frame_positions_derived"
    """A multi-frame image states the position of its first frame alone."""

    # Files of a DICOM series.
    DUPLICATE_FILES = "duplicate_files"
    """Copies of files or frames were left out."""
    DAMAGED_COPIES = "damaged_copies"
    """Damaged copies of intact files were left out."""
    UNREADABLE_FILES = "unreadable_files"
    """Files could not be read as DICOM, and may be slices."""
    LINKS_IGNORED = "links_ignored"
    """An archive has symbolic links, which may lead to slices."""
    POSSIBLE_SLICES_LEFT_OUT = "possible_slices_left_out"
    """Images were left out that have the planes of the series, and may be slices."""

    # Headers and values of a DICOM series.
    DECIMAL_COMMA = "decimal_comma"
    """A number has a decimal comma, which was read as a point."""
    RESCALE_MISSING = "rescale_missing"
    """No slice of a CT states RescaleSlope or RescaleIntercept."""
    EMPTY_SLICES = "empty_slices"
    """Slices with the RescaleSlope 0 have no content."""
    HIGH_BIT_IGNORED = "high_bit_ignored"
    """HighBit contradicts BitsStored."""
    PADDING_VOXELS = "padding_voxels"
    """Voxels are padding, and got the value of the background."""
    PADDING_VALUE_IGNORED = "padding_value_ignored"
    """PixelPaddingValue is a value of tissue in CT."""
    LOSSY_COMPRESSION = "lossy_compression"
    """Images were compressed with loss."""
    MONOCHROME1 = "monochrome1"
    """Low values are meant to be displayed bright."""

    # Grid and values of any scan.
    SFORM_IGNORED = "sform_ignored"
    """The sform of a NIfTI file contradicts pixdim and the qform, which was used."""
    QFORM_IGNORED = "qform_ignored"
    """The qform of a NIfTI file disagrees with the sform, which was used."""
    PIXDIM_IGNORED = "pixdim_ignored"
    """The pixdim of a NIfTI file is the default, and disagrees with the sform, which was used."""
    IMPLAUSIBLE_UNIT = "implausible_unit"
    """The stated unit gives an unusual extent, and millimetres a usual one; the request tolerates it."""
    UNUSUAL_EXTENT = "unusual_extent"
    """The scan is smaller or larger than a body or a specimen can be."""
    ORIENTATION_MISSING = "orientation_missing"
    """The header does not state the directions of the axes."""
    ORIGIN_MISSING = "origin_missing"
    """The header does not state the position of the first voxel."""
    SHEAR_ALIGNED = "shear_aligned"
    """The planes of a sheared grid were aligned for the network."""
    SHEAR_IGNORED = "shear_ignored"
    """The network saw a slightly sheared grid as if its axes were at right angles."""
    FILL_VALUES_REPLACED = "fill_values_replaced"
    """Voxels were NaN, infinite or another fill value."""

    CHANNEL_RESAMPLED = "channel_resampled"
    """The scan of a channel was resampled to the grid of the first one."""

    # The model and its run.
    PROVIDER_UNUSED = "provider_unused"
    """The model does not run on an execution provider of the worker."""
    PROVIDER_PARTLY_USED = "provider_partly_used"
    """A part of the model does not run on the worker's first execution provider."""
    PRECISION_FALLBACK = "precision_fallback"
    """The model runs in fp32 instead of the worker's precision."""
    LOGITS_ON_DISK = "logits_on_disk"
    """The logits did not fit into memory and were kept on disk."""

    # The DICOM segmentation.
    UIDS_GENERATED = "uids_generated"
    """The DICOM segmentation refers to generated UIDs, because the scan lacks its own."""


@dataclass(frozen=True, order=True)
class ReportWarning:
    """A warning for the user of a mask.

    Attributes:
        code: The kind of the warning.
        message: A public sentence, with the values.
    """

    code: WarningCode
    message: str
