"""The selection of one acquisition of a DICOM series, by attributes of its slices.

`formats.dicom.frame_attributes` reads these attributes, and `formats.dicom.series.acquisitions` compares them.
"""

import re
from collections.abc import Mapping
from math import isfinite

SelectValue = int | float | str | None
"""Value of an attribute: a number, a time of day or a text; None selects slices without the attribute."""

SELECTABLE = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "NominalPercentageOfCardiacPhase",
    "NominalPercentageOfRespiratoryPhase",
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "StackID",
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "FlipAngle",
    "InversionTime",
    "InversionTimes",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "SequenceName",
    "ComplexImageComponent",
    "KVP",
    "FilterType",
    "MonoenergeticEnergyEquivalent",
    "ConvolutionKernel",
    "ReconstructionAlgorithm",
    "SliceThickness",
    "ImageType",
    "FrameType",
    "RescaleType",
    "Units",
    "ScanOptions",
    "ContrastBolusAgent",
    "SeriesNumber",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "FrameReferenceTime",
    "TemporalPositionTimeOffset",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "FrameAcquisitionDateTime",
    "FrameReferenceDateTime",
    "ContentTime",
)
"""Keywords of the attributes by which slices are selected, the most telling ones first; none describes a patient."""

MAX_SELECTED_ATTRIBUTES = 8
_MAX_NUMBER = 1e15
_TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,256}")


def check_selection(selection: object) -> dict[str, SelectValue]:
    """Validates a selection.

    Args:
        selection: Values of attributes by keyword.

    Raises:
        ValueError: A keyword or value is not allowed. The message quotes no text of the sender.
    """
    if not isinstance(selection, Mapping):
        raise ValueError("expected an object with the value of each attribute")
    if not selection.keys() <= set(SELECTABLE):
        raise ValueError(f"unknown attribute; expected one of {', '.join(SELECTABLE)}")
    if len(selection) > MAX_SELECTED_ATTRIBUTES:
        raise ValueError(f"expected at most {MAX_SELECTED_ATTRIBUTES} attributes")
    for keyword, value in selection.items():
        if not _is_allowed(value):
            raise ValueError(
                f"{keyword}: expected a number, a text of at most 256 characters, or null for slices without it"
            )
    return {keyword: selection[keyword] for keyword in SELECTABLE if keyword in selection}


def _is_allowed(value: object) -> bool:
    if value is None or isinstance(value, str):
        return value is None or _TEXT.fullmatch(value) is not None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _MAX_NUMBER and isfinite(value)
