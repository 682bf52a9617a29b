"""Reads the attributes by which frames of one acquisition agree and those of several differ.

Times are held without their date, and texts that people write about a patient's study as hashes.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite

from pydicom.dataset import Dataset

from inference_service.contract.slice_selection import SELECTABLE
from inference_service.core.errors import InputCorrupt
from inference_service.formats.dicom.attributes import holders, read_components, read_values, tag_of


@dataclass(frozen=True)
class Text:
    """A text, or several numbers, as the file states it; its components are separated by backslashes.

    It is left out of representations, because a file may state any text.
    """

    text: str = field(repr=False)


@dataclass(frozen=True)
class HashedText:
    """The hash of a text that is not held."""

    digest: int


@dataclass(frozen=True)
class TimeRange:
    """The times of day of one acquisition, in seconds; both ends are included."""

    first: float
    last: float


AttributeValue = float | Text | HashedText
"""A number, seconds since midnight, or a text."""
Attributes = tuple[tuple[str, AttributeValue], ...]
"""Keyword and value of each attribute that a frame has."""

# Keyword, and the sequences of functional groups that have it; none where it is an attribute of the instance alone.
_TIMES: dict[str, tuple[str, ...]] = {
    "AcquisitionTime": (),
    "AcquisitionDateTime": (),
    "FrameAcquisitionDateTime": ("FrameContentSequence",),
    "FrameReferenceDateTime": ("FrameContentSequence",),
    "ContentTime": (),
}
_OFFSETS: dict[str, tuple[str, ...]] = {
    "TriggerTime": (),
    "NominalCardiacTriggerDelayTime": ("CardiacSynchronizationSequence",),
    "FrameReferenceTime": (),
    "TemporalPositionTimeOffset": ("TemporalPositionSequence",),
}
_NUMBERS: dict[str, tuple[str, ...]] = {
    "TemporalPositionIdentifier": (),
    "TemporalPositionIndex": ("FrameContentSequence",),
    "NominalPercentageOfCardiacPhase": ("CardiacSynchronizationSequence",),
    "NominalPercentageOfRespiratoryPhase": ("RespiratorySynchronizationSequence",),
    "AcquisitionNumber": (),
    "FrameAcquisitionNumber": ("FrameContentSequence",),
    "EchoNumbers": (),
    "EchoTime": (),
    "EffectiveEchoTime": ("MREchoSequence",),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence",),
    "InversionTime": (),
    "InversionTimes": ("MRModifierSequence",),
    "DiffusionBValue": ("MRDiffusionSequence",),
    "DiffusionGradientOrientation": ("MRDiffusionSequence",),
    "KVP": ("CTXRayDetailsSequence",),
    "MonoenergeticEnergyEquivalent": ("MultienergyCTCharacteristicsSequence",),
    "SliceThickness": ("PixelMeasuresSequence",),
    "SeriesNumber": (),
    "RescaleSlope": ("PixelValueTransformationSequence",),
    "RescaleIntercept": ("PixelValueTransformationSequence",),
}
_TERMS: dict[str, tuple[str, ...]] = {
    "StackID": ("FrameContentSequence",),
    "SequenceName": (),
    "ComplexImageComponent": ("MRImageFrameTypeSequence",),
    "FilterType": ("CTXRayDetailsSequence",),
    "ConvolutionKernel": ("CTReconstructionSequence",),
    "ReconstructionAlgorithm": ("CTReconstructionSequence",),
    "ImageType": (),
    "FrameType": ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence", "PETFrameTypeSequence"),
    "RescaleType": ("PixelValueTransformationSequence",),
    "Units": (),
    "ScanOptions": (),
    "ContrastBolusAgent": (),
}
_FREE_TEXTS: dict[str, tuple[str, ...]] = {
    "SeriesDescription": (),
    "ProtocolName": (),
}
# A sequence within that of the functional group.
_INNER_GROUPS = {"DiffusionGradientOrientation": "DiffusionGradientDirectionSequence"}
CLOCK_TIMES = frozenset(_TIMES)
"""Attributes that are times of day, in seconds."""
TIME_OFFSETS = frozenset(_OFFSETS)
"""Attributes that are times since an event."""
_GROUPS = {**_NUMBERS, **_TERMS, **_OFFSETS, **_TIMES, **_FREE_TEXTS}
KEYWORDS = (*SELECTABLE, *(keyword for keyword in _GROUPS if keyword not in SELECTABLE))
"""All attributes that are read, the most telling ones first."""

# With each keyword, the tags of which one is in each data set that may have it.
_TAGS = [(keyword, {tag_of(name) for name in (keyword, *_GROUPS[keyword])}) for keyword in KEYWORDS]
# A time of day, after a date of eight digits (PS3.5 6.2, TM and DT).
_TIME = re.compile(r"(?:\d{8})?(\d{2})(?::?(\d{2})(?::?(\d{2}(?:\.\d{1,6})?))?)?(?:[+-]\d{4})?")
# Python reads more as numbers, such as 1_000.
_NUMERIC = re.compile(r"[-+.0-9eE]+")
# Decimal strings and binary numbers of 32 bits state a value to about as many digits.
_DIGITS = 7


def read_attributes(sources: Sequence[Dataset]) -> Attributes:
    """Reads the attributes of one frame.

    Args:
        sources: The frame's functional groups, those that frames share, and the data set, in this order.
    """
    found = []
    # Most attributes are missing from most data sets: looking for tags is much faster than for keywords.
    present = [(source, source.keys()) for source in sources]
    for keyword, wanted in _TAGS:
        candidates = [source for source, tags in present if not tags.isdisjoint(wanted)]
        components = _read(candidates, keyword) if candidates else []
        if any(components):
            found.append((keyword, to_value(keyword, components)))
    return tuple(found)


def to_value(keyword: str, components: Sequence[str]) -> AttributeValue:
    """Returns the value of an attribute in the form in which values are compared.

    Args:
        keyword: The attribute.
        components: Its values as text, without padding.

    >>> to_value("EchoTime", ["4.599999905"]), to_value("AcquisitionTime", ["101045.50"])
    (4.6, 36645.5)
    """
    text = "\\".join(components)
    if keyword in _TERMS:
        return Text(text)
    if keyword in CLOCK_TIMES:
        match = _TIME.fullmatch(text)
        if match:
            hours, minutes, seconds = (float(each or 0) for each in match.groups())
            return hours * 3600 + minutes * 60 + seconds
    elif keyword not in _FREE_TEXTS and all(map(_NUMERIC.fullmatch, components)):
        with suppress(ValueError):
            # Adding 0 removes the sign of 0.
            numbers = [float(format_number(float(each))) + 0.0 for each in components]
            if all(map(isfinite, numbers)):
                return numbers[0] if len(numbers) == 1 else Text("\\".join(map(format_number, numbers)))
    return HashedText(hash(text))


def format_number(number: float) -> str:
    """Returns a number with the digits by which numbers are compared.

    >>> format_number(4.599999905)
    '4.6'
    """
    return f"{number:.{_DIGITS}g}"


def _read(sources: Sequence[Dataset], keyword: str) -> list[str]:
    for holder in _holders(sources, keyword):
        if tag_of(keyword) in holder:
            # No file is refused for an invalid value of these.
            with suppress(InputCorrupt):
                components = read_components(holder, keyword)
                if any(components):
                    return components
    return []


def _holders(sources: Sequence[Dataset], keyword: str) -> Iterator[Dataset]:
    inner = _INNER_GROUPS.get(keyword, "")
    for group in _GROUPS[keyword] or ("",):
        for holder in holders(sources, group):
            if inner and tag_of(inner) in holder:
                yield from read_values(holder, inner)[:1]
            yield holder
