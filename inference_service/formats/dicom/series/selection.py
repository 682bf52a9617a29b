"""Chooses the series that an input is meant to hold; the other images are left out, and counted by reason."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from inference_service.core.errors import MixedSeries, NotAVolume
from inference_service.formats.dicom.instance import ExclusionReason, Instance

_MAX_LISTED_SERIES = 5


def select_series(
    instances: Sequence[Instance], series_uid: str | None, excluded: Counter[ExclusionReason]
) -> tuple[list[Instance], Counter[ExclusionReason]]:
    """Chooses the series that is read.

    Args:
        instances: All image instances of the input.
        series_uid: SeriesInstanceUID that the request names; None expects a single candidate.
        excluded: Number of files that are left out already, by reason.

    Returns:
        The instances of the series, and the number of files that are left out in all, by reason.

    Raises:
        MixedSeries: There are several candidates, and the request names none.
        NotAVolume: There is no candidate, or the series that the request names is not in the input.
    """
    excluded = excluded.copy()
    if series_uid is not None:
        # UIDs are padded to an even length, and copied with the padding by some.
        series_uid = series_uid.strip(" \0")
    candidates: dict[str, list[Instance]] = defaultdict(list)
    others: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        if instance.exclusion_reason is None or _is_reformat([instance]) or _is_capture([instance]):
            candidates[instance.series_uid].append(instance)
        else:
            others[instance.series_uid].append(instance)
    if series_uid in others and series_uid not in candidates:
        candidates[series_uid] = others.pop(series_uid)
    excluded.update(each.exclusion_reason for series in others.values() for each in series if each.exclusion_reason)
    if series_uid is not None:
        return _select_named(candidates, series_uid, excluded)
    candidates = _prefer(candidates, excluded)
    if not candidates:
        raise NotAVolume(f"the input has no series of slices: it holds {_list_counts(excluded)}")
    if len(candidates) > 1:
        slices = {uid: _count_slices(series) for uid, series in candidates.items()}
        listed = [*map(str, slices.values())][:_MAX_LISTED_SERIES] + ["…"] * (len(slices) > _MAX_LISTED_SERIES)
        raise MixedSeries(
            f"the input has {len(slices)} series, of {', '.join(listed)} slices: name one of them by its "
            "SeriesInstanceUID in input.series",
            slices,
        )
    (series,) = candidates.values()
    return series, excluded


def _select_named(
    candidates: Mapping[str, list[Instance]], series_uid: str, excluded: Counter[ExclusionReason]
) -> tuple[list[Instance], Counter[ExclusionReason]]:
    if series_uid not in candidates:
        raise NotAVolume(
            f"the series that the request names in input.series is not among the {len(candidates)} series of the input"
        )
    excluded[ExclusionReason.OTHER_SERIES] += sum(
        len(series) for uid, series in candidates.items() if uid != series_uid
    )
    return candidates[series_uid], +excluded


def _prefer(candidates: dict[str, list[Instance]], excluded: Counter[ExclusionReason]) -> dict[str, list[Instance]]:
    """Drops series that are worse than others, and counts their instances in `excluded`.

    Images of a scanner are preferred over secondary captures, series with positions over those without, several slices
    over a single one, original images over reformatted ones, in this order.
    """
    for reason, is_worse in _PREFERENCES:
        better = {uid: series for uid, series in candidates.items() if not is_worse(series)}
        if better and len(better) < len(candidates):
            excluded[reason] += sum(len(series) for uid, series in candidates.items() if uid not in better)
            candidates = better
    return candidates


def _has_no_position(series: Sequence[Instance]) -> bool:
    return not any(instance.frames for instance in series)


def _is_single_image(series: Sequence[Instance]) -> bool:
    return _count_slices(series) == 1


def _is_reformat(series: Sequence[Instance]) -> bool:
    return any(instance.exclusion_reason is ExclusionReason.REFORMAT for instance in series)


def _is_capture(series: Sequence[Instance]) -> bool:
    """Returns True for a multi-frame secondary capture with positions: some cone-beam CTs are stored as such."""
    return any(
        instance.exclusion_reason is ExclusionReason.SECONDARY_CAPTURE and len(instance.frames) > 1
        for instance in series
    )


_PREFERENCES = (
    (ExclusionReason.SECONDARY_CAPTURE, _is_capture),
    (ExclusionReason.NO_POSITION, _has_no_position),
    (ExclusionReason.SINGLE_IMAGE, _is_single_image),
    (ExclusionReason.REFORMAT, _is_reformat),
)


def _count_slices(series: Sequence[Instance]) -> int:
    return sum(len(instance.frames) for instance in series)


def _list_counts(excluded: Mapping[ExclusionReason, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(excluded.items())) or "no image"
