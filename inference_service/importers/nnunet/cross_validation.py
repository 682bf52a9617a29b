"""The Dice coefficients of nnU-Net's cross-validation, as a results folder states them."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

from inference_service.core.errors import ServiceError
from inference_service.importers.nnunet.dataset import Output
from inference_service.importers.nnunet.fields import Fields, read_json
from inference_service.importers.nnunet.results_folder import CHOICE_FILE, CROSS_VALIDATION, ResultsFolder
from inference_service.importers.sources import StatedDice

_SUMMARY, _PROCESSED = "summary.json", "postprocessed"
# It lists each scan with each label.
_MAX_BYTES = 2**26
_LABEL = re.compile(r"[0-9]{1,5}")


def find_cross_validation(
    folder: ResultsFolder, folds: Sequence[str], outputs: Sequence[Output], *, postprocessed: bool
) -> StatedDice | None:
    """Finds what the source says about its accuracy; a damaged file says nothing.

    Args:
        folder: The results folder.
        folds: The folds that are imported: the results of other folds are taken where these have none.
        outputs: The labels or regions.
        postprocessed: Whether the model has the postprocessing that was determined on these results.
    """
    own = folder.path / f"{CROSS_VALIDATION}{'_'.join(folds)}"
    for place in (own, *sorted(folder.path.glob(f"{CROSS_VALIDATION}*"))):
        processed = place / _PROCESSED / _SUMMARY
        file = processed if postprocessed and place == own and processed.is_file() else place / _SUMMARY
        with suppress(ServiceError):
            summary = read_json(file, max_bytes=_MAX_BYTES)
            which = ", ".join(place.name.removeprefix(CROSS_VALIDATION).split("_"))
            how = "with" if file == processed else "without"
            return StatedDice(
                f"{file.relative_to(folder.path)}, folds {which}, {how} postprocessing",
                _dice(summary.child("foreground_mean"), "Dice"),
                _by_label(summary.child("mean"), outputs),
            )
    # This file tells no labels apart.
    with suppress(ServiceError):
        results = read_json(folder.path.parent / CHOICE_FILE).child("all_results")
        if (mean := _dice(results, folder.path.name)) is not None:
            return StatedDice(f"{CHOICE_FILE}, without postprocessing", mean)
    return None


def _by_label(means: Fields, outputs: Sequence[Output]) -> Mapping[str, float]:
    """The coefficient of each label, or of each region, whose key lists its labels."""
    by_labels = {tuple(sorted(map(int, _LABEL.findall(key)))): key for key in means.values}
    found = {
        output.name: _dice(means.child(by_labels[output.labels]), "Dice")
        for output in outputs
        if output.labels in by_labels
    }
    return {name: dice for name, dice in found.items() if dice is not None}


def _dice(fields: Fields, key: str) -> float | None:
    """A coefficient; None where it is undefined, as for a label that does not occur."""
    value = fields.values.get(key)
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None
