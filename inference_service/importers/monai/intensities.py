"""Maps MONAI's transforms of intensities to those of a manifest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from inference_service.contract.intensity import (
    ClipIntensity,
    ClipPercentilesIntensity,
    FixedRangeIntensity,
    Intensity,
    LinearIntensity,
    MinMaxIntensity,
    PercentilesIntensity,
    ZScoreIntensity,
)
from inference_service.importers.monai.component import Component

Steps: TypeAlias = tuple[Intensity, ...]
ChannelSteps: TypeAlias = Sequence[Steps]
"""The steps of each channel, or one entry for all channels."""

# Bounds that no value of a scan exceeds: a clip on one side only.
_LEAST, _GREATEST = -3.4e38, 3.4e38
_IGNORED = ("allow_missing_keys", "dtype")


def map_intensity(component: Component) -> ChannelSteps | None:
    """Maps a transform of intensities.

    Returns:
        The steps that it becomes; None for a transform of another kind.

    Raises:
        ModelInvalid: An argument has no counterpart in a manifest.
    """
    mapping = _MAPPINGS.get(component.name)
    if mapping is None:
        return None
    component.take("keys")
    steps = mapping(component)
    component.finish(_IGNORED)
    return steps


def _statistics(component: Component) -> dict[str, str]:
    return {"statistics": "channel" if component.flag("channel_wise") else "all_channels"}


def _scale_range(component: Component) -> ChannelSteps:
    low, high = component.number("a_min"), component.number("a_max")
    if low >= high:
        component.refuse(f"a_min {low:g} is not below a_max {high:g}")
    target = _target(component)
    step = FixedRangeIntensity(kind="fixed_range", input=(low, high), output=target.range, clip=target.clip)
    return [(step, *target.then)]


def _scale_percentiles(component: Component) -> ChannelSteps:
    percentiles = (component.number("lower"), component.number("upper"))
    relative = component.flag("relative")
    statistics = _statistics(component)
    target = _target(component)
    low, high = target.range
    if relative:
        # The percentiles become values as far into the range as they are into the values.
        low, high = (low + (high - low) * percentile / 100 for percentile in percentiles)
    fields = {"percentiles": percentiles, "output": (low, high), "clip": target.clip, **statistics}
    return [(PercentilesIntensity.model_validate({"kind": "percentiles", **fields}), *target.then)]


@dataclass(frozen=True)
class _Target:
    """The range that values are scaled to.

    Attributes:
        range: Ascending.
        clip: Whether values are clipped to it.
        then: Steps that follow.
    """

    range: tuple[float, float]
    clip: bool
    then: Steps = ()


def _target(component: Component) -> _Target:
    """The range b_min to b_max, or 0 to 1 where one of them is missing: then the other one only clips."""
    low, high = component.optional_number("b_min"), component.optional_number("b_max")
    clip = component.flag("clip")
    if low is None or high is None:
        if clip and low == high:
            component.refuse("neither b_min nor b_max says where values are clipped", "clip")
        bounds = (_LEAST if low is None else low, _GREATEST if high is None else high)
        return _Target((0.0, 1.0), False, (ClipIntensity(kind="clip", range=bounds),) if clip else ())
    if low == high:
        component.refuse(f"b_min equals b_max, {low:g}")
    if low < high:
        return _Target((low, high), clip)
    return _Target((high, low), clip, (LinearIntensity(kind="linear", scale=-1.0, offset=low + high),))


def _scale(component: Component) -> ChannelSteps:
    factor = component.optional_number("factor")
    low = component.optional_number("minv", 0.0 if factor is None else None)
    high = component.optional_number("maxv", 1.0 if factor is None else None)
    statistics = _statistics(component)
    if factor is not None:
        if low is not None or high is not None:
            component.refuse("a factor has an effect only without minv and maxv", "factor")
        return [(LinearIntensity(kind="linear", scale=1.0 + factor),)]
    if low is None or high is None:
        low, high = 0.0, 1.0
    if low >= high:
        component.refuse(f"minv {low:g} is not below maxv {high:g}")
    return [(MinMaxIntensity.model_validate({"kind": "min_max", "output": (low, high), **statistics}),)]


def _normalise(component: Component) -> ChannelSteps:
    subtrahends, divisors = component.take("subtrahend"), component.take("divisor")
    nonzero = component.flag("nonzero")
    statistics = _statistics(component)
    if subtrahends is None and divisors is None:
        return [(ZScoreIntensity.model_validate({"kind": "z_score", "nonzero_only": nonzero, **statistics}),)]
    if subtrahends is None or divisors is None or nonzero:
        component.refuse("a subtrahend needs a divisor, and neither can be mapped together with nonzero")
    first, second = _numbers(component, "subtrahend", subtrahends), _numbers(component, "divisor", divisors)
    if len(first) != len(second) or not first:
        component.refuse("subtrahend and divisor have different numbers of values")
    return [
        (LinearIntensity(kind="linear", scale=1.0 / (divisor or 1.0), offset=-subtrahend / (divisor or 1.0)),)
        for subtrahend, divisor in zip(first, second, strict=True)
    ]


def _numbers(component: Component, argument: str, value: object) -> list[float]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    numbers = [float(each) for each in values if isinstance(each, int | float) and not isinstance(each, bool)]
    if len(numbers) < len(values):
        component.refuse(f"expected numbers, got {value!r}", argument)
    return numbers


def _clip_percentiles(component: Component) -> ChannelSteps:
    low, high = component.optional_number("lower"), component.optional_number("upper")
    if component.take("sharpness_factor") is not None:
        component.refuse("a soft clip cannot be mapped to a manifest", "sharpness_factor")
    percentiles = (0.0 if low is None else low, 100.0 if high is None else high)
    fields = {"kind": "clip_percentiles", "percentiles": percentiles, **_statistics(component)}
    return [(ClipPercentilesIntensity.model_validate(fields),)]


def _threshold(component: Component) -> ChannelSteps:
    threshold, value = component.number("threshold"), component.number("cval", 0.0)
    above = component.flag("above", True)
    if value != threshold:
        component.refuse(f"only a clip can be mapped to a manifest: cval {value:g} is not the threshold {threshold:g}")
    bounds = (threshold, _GREATEST) if above else (_LEAST, threshold)
    return [(ClipIntensity(kind="clip", range=bounds),)]


def _shift(component: Component) -> ChannelSteps:
    offset = component.number("offset")
    for argument in ("factor_key", "safe"):
        if component.take(argument):
            component.refuse("this argument cannot be mapped to a manifest", argument)
    return [(LinearIntensity(kind="linear", offset=offset),)]


_MAPPINGS: Mapping[str, Callable[[Component], ChannelSteps]] = {
    "ClipIntensityPercentilesd": _clip_percentiles,
    "NormalizeIntensityd": _normalise,
    "ScaleIntensityRangePercentilesd": _scale_percentiles,
    "ScaleIntensityRanged": _scale_range,
    "ScaleIntensityd": _scale,
    "ShiftIntensityd": _shift,
    "ThresholdIntensityd": _threshold,
}


def of_one_channel(step: Intensity) -> Intensity:
    """Returns a step whose statistics are those of its channel: for one channel, they are those of all."""
    return step.model_copy(update={"statistics": "channel"}) if hasattr(step, "statistics") else step


def uses_statistics(step: Intensity) -> bool:
    """Returns True if a step depends on more of the scan than the voxel that it maps."""
    return not isinstance(step, ClipIntensity | FixedRangeIntensity | LinearIntensity)


def is_affine(step: Intensity) -> bool:
    """Returns True for a multiple plus an offset: it gives the same before and after linear interpolation."""
    return isinstance(step, LinearIntensity) or (isinstance(step, FixedRangeIntensity) and not step.clip)


def map_threshold(threshold: float, steps: Sequence[Intensity]) -> float | None:
    """Follows a threshold through steps, so that a value exceeds it before them if and only if it does after them.

    Returns:
        The threshold after the steps; None if they depend on the scan or do not keep the order of values there.
    """
    value = threshold
    for step in steps:
        if isinstance(step, ClipIntensity):
            if not step.range[0] <= value < step.range[1]:
                return None
        elif isinstance(step, FixedRangeIntensity):
            low, high = step.input
            if step.clip and not low <= value < high:
                return None
            value = step.output[0] + (value - low) / (high - low) * (step.output[1] - step.output[0])
        elif isinstance(step, LinearIntensity) and step.scale > 0:
            value = value * step.scale + step.offset
        else:
            return None
    return value
