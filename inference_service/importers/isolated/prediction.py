"""Runs a source's own predictor on a scan."""

from collections.abc import Callable

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolated import Arguments


def predict(task: Arguments) -> dict[str, object]:
    """Runs a predictor.

    Args:
        task: `predictor`, its name, and its arguments, among them `scans`, the files of the scan, and `target`, the
            path of an array that is written: the labels on the scan's grid, (i, j, k).

    Returns:
        What the predictor says about its run.
    """
    return _predictor(str(task["predictor"]))(task)


def _predictor(name: str) -> Callable[[Arguments], dict[str, object]]:
    """Imports what one predictor needs."""
    if name == "monai_bundle":
        from inference_service.importers.isolated.monai_evaluator import run_bundle

        return run_bundle
    if name == "nnunet":
        from inference_service.importers.isolated.nnunet_predictor import run_nnunet

        return run_nnunet
    if name == "totalsegmentator":
        from inference_service.importers.isolated.totalsegmentator_predictor import run_totalsegmentator

        return run_totalsegmentator
    raise ModelInvalid(f"there is no predictor {name}")
