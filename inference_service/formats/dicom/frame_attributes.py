"""Reads the attributes by which frames of one acquisition agree and those of several differ.

Texts are held as hashes, and times without their date: nothing that could identify a patient is kept.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from math import isfinite

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from inference_service.core.errors import InputCorrupt
from inference_service.formats.dicom.attributes import holders, read_components

Attributes = tuple[tuple[str, float], ...]
"""Keyword and value of each attribute that a frame has: a number, seconds since midnight, or the hash of a text."""

# Keyword, and the sequence of a functional group that has it; empty where it is an attribute of the instance alone.
_TIMES = {
    "AcquisitionTime": "",
    "AcquisitionDateTime": "",
    "FrameAcquisitionDateTime": "FrameContentSequence",
    "FrameReferenceDateTime": "FrameContentSequence",
    "ContentTime": "",
}
_NUMBERS = {
    "TriggerTime": "",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "FrameReferenceTime": "",
    "TemporalPositionTimeOffset": "TemporalPositionSequence",
}
_TERMS = {
    "TemporalPositionIdentifier": "",
    "TemporalPositionIndex": "FrameContentSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
    "AcquisitionNumber": "",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "StackID": "FrameContentSequence",
    "EchoNumbers": "",
    "EchoTime": "",
    "EffectiveEchoTime": "MREchoSequence",
    "FlipAngle": "MRTimingAndRelatedParametersSequence",
    "InversionTime": "",
    "InversionTimes": "MRModifierSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "ComplexImageComponent": "MRImageFrameTypeSequence",
    "KVP": "CTXRayDetailsSequence",
    "FilterType": "CTXRayDetailsSequence",
    "MonoenergeticEnergyEquivalent": "MultienergyCTCharacteristicsSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
    "ReconstructionAlgorithm": "CTReconstructionSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "ImageType": "",
    "FrameType": "CTImageFrameTypeSequence",
    "ScanOptions": "",
    "ContrastBolusAgent": "",
    "SeriesNumber": "",
    "SeriesDescription": "",
    "ProtocolName": "",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
CLOCK_TIMES = frozenset(_TIMES)
"""Attributes that are times of day, in seconds."""
TIME_OFFSETS = frozenset(_NUMBERS)
"""Attributes that are times since an event."""
KEYWORDS = {**_TERMS, **_NUMBERS, **_TIMES}
"""All attributes that are read, the most telling ones first, each with its functional group."""

_TAGS = [(keyword, Tag(keyword), group, Tag(group) if group else None) for keyword, group in KEYWORDS.items()]
# A time of day, after a date of eight digits (PS3.5 6.2, TM and DT).
_TIME = re.compile(r"(?:\d{8})?(\d{2}):?(\d{2}):?(\d{2}(?:\.\d{1,6})?)(?:[+-]\d{4})?")


def read_attributes(sources: Sequence[Dataset]) -> Attributes:
    """Reads the attributes of one frame.

    Args:
        sources: The frame's functional groups, those that frames share, and the data set, in this order.
    """
    found = []
    # Most attributes are missing from most data sets: looking for tags is much faster than for keywords.
    present = [(source, source.keys()) for source in sources]
    for keyword, tag, group, group_tag in _TAGS:
        candidates = [source for source, tags in present if tag in tags or group_tag in tags]
        text = _read(candidates, keyword, group) if candidates else ""
        if text:
            found.append((keyword, _value(keyword, text)))
    return tuple(found)


def _read(sources: Sequence[Dataset], keyword: str, group: str) -> str:
    for holder in holders(sources, group):
        if keyword in holder:
            # No file is refused for an invalid value of these.
            with suppress(InputCorrupt):
                components = read_components(holder, keyword)
                if any(components):
                    return "\\".join(components)
    return ""


def _value(keyword: str, text: str) -> float:
    """A number, seconds since midnight, or the hash of a text that is neither."""
    if keyword in CLOCK_TIMES:
        match = _TIME.fullmatch(text)
        if match:
            hours, minutes, seconds = match.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    else:
        with suppress(ValueError):
            number = float(text)
            if isfinite(number):
                return number
    return float(hash(text))
