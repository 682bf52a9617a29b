"""Runs a source's own predictor on a scan."""

from collections.abc import Callable, Mapping

from inference_service.importers.isolated.builders import Arguments
from inference_service.importers.isolated.monai_evaluator import run_bundle

_PREDICTORS: Mapping[str, Callable[[Arguments], dict[str, object]]] = {"monai_bundle": run_bundle}


def predict(task: Arguments) -> dict[str, object]:
    """Runs a predictor.

    Args:
        task: `predictor`, its name, and its arguments, among them `scans`, the files of the scan, and `target`, the
            path of an array that is written: the labels on the scan's grid, (i, j, k).

    Returns:
        What the predictor says about its run.
    """
    return _PREDICTORS[str(task["predictor"])](task)
