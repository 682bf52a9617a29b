"""Which one series of an input is meant: what else lies beside it is set aside, and counted by reason."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from inference_service.core.errors import MixedSeries, NotAVolume
from inference_service.formats.dicom.image import Image, Reason

_MOST_NAMED, _LONGEST_UID = 5, 64
# Left out as soon as there is anything else.
_SECOND_CHOICE = {Reason.REFORMAT}


def choose_images(
    images: Sequence[Image], wanted: str | None, aside: Counter[Reason]
) -> tuple[list[Image], Counter[Reason]]:
    """Finds the one series that is meant.

    Args:
        images: All that the input holds.
        wanted: SeriesInstanceUID that the request names; None takes the only one that can be meant.
        aside: How many files were set aside before, for which reason.

    Returns:
        Its images, and how many files are set aside in all.

    Raises:
        MixedSeries: Several can be meant.
        NotAVolume: None can.
    """
    aside = aside.copy()
    candidates: dict[str, list[Image]] = defaultdict(list)
    unlikely: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        if image.reason is None or image.reason in _SECOND_CHOICE:
            candidates[image.series_uid].append(image)
        else:
            unlikely[image.series_uid].append(image)
    if wanted in unlikely and wanted not in candidates:
        candidates[wanted] = unlikely.pop(wanted)
    aside.update(image.reason for found in unlikely.values() for image in found if image.reason)
    if wanted is not None:
        return _named(candidates, wanted, aside)
    # In this order: a series is better than a single image, and an original better than what was made of it.
    for reason, is_worse in _PREFERENCES:
        better = {uid: found for uid, found in candidates.items() if not is_worse(found)}
        if better and len(better) < len(candidates):
            aside[reason] += sum(len(found) for uid, found in candidates.items() if uid not in better)
            candidates = better
    if not candidates:
        raise NotAVolume(f"the input holds no series of slices: {_listed(aside)}")
    if len(candidates) > 1:
        raise MixedSeries(f"the input holds {len(candidates)} series; name one in input.series: {_names(candidates)}")
    (found,) = candidates.values()
    return found, aside


def _named(
    candidates: Mapping[str, list[Image]], wanted: str, aside: Counter[Reason]
) -> tuple[list[Image], Counter[Reason]]:
    if wanted not in candidates:
        raise NotAVolume(
            f"the input does not hold the series that the request names, but {_names(candidates) or 'none'}"
        )
    aside[Reason.OTHER_SERIES] += sum(len(found) for uid, found in candidates.items() if uid != wanted)
    return candidates[wanted], +aside


def _has_no_position(images: Sequence[Image]) -> bool:
    return not any(image.planes for image in images)


def _is_single(images: Sequence[Image]) -> bool:
    return sum(len(image.planes) for image in images) == 1


def _is_second_choice(images: Sequence[Image]) -> bool:
    return any(image.reason in _SECOND_CHOICE for image in images)


_PREFERENCES = (
    (Reason.NO_POSITION, _has_no_position),
    (Reason.SINGLE_IMAGE, _is_single),
    (Reason.REFORMAT, _is_second_choice),
)


def _names(candidates: Mapping[str, Sequence[Image]]) -> str:
    sizes = {uid: sum(len(image.planes) for image in found) for uid, found in candidates.items()}
    # What is no UID could be any text.
    shown = {uid: re.sub(r"[^0-9.]", "?", uid)[:_LONGEST_UID] or "(without a UID)" for uid in sizes}
    named = [f"{shown[uid]} of {size} slices" for uid, size in sizes.items()]
    return ", ".join([*named[:_MOST_NAMED], *(["…"] if len(named) > _MOST_NAMED else [])])


def _listed(aside: Mapping[Reason, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(aside.items())) or "no image at all"
