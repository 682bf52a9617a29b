"""Segments a scan by this service, for a comparison with the source's own predictor."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from inference_service.contract.input_options import InputOptions
from inference_service.core.files import Sources
from inference_service.core.progress import overall_progress
from inference_service.core.settings import get_settings
from inference_service.importers.isolated import Arguments
from inference_service.importers.isolated.report import tell_progress
from inference_service.segmentation.local_run import segment_locally
from inference_service.segmentation.pipeline import SegmentOptions


def segment(task: Arguments) -> dict[str, object]:
    """Segments a scan as the command `segment` does, whatever the scan's modality.

    Args:
        task: `name` and `version` of the model; `scans`, the path of each channel's scan by the channel's name; and
            `target`, the path of the mask.
    """
    scans = {name: Path(path) for name, path in cast("Mapping[str, str]", task["scans"]).items()}
    sources: Sources = scans if len(scans) > 1 else next(iter(scans.values()))
    segment_locally(
        sources,
        Path(str(task["target"])),
        get_settings(),
        model=str(task["name"]),
        version=str(task["version"]),
        options=SegmentOptions(InputOptions(modality_check=False)),
        progress=lambda stage, share: tell_progress(stage, overall_progress(stage, share)),
    )
    return {}
