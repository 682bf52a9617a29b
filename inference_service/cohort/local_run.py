"""Segments a cohort on this machine, one scan after another with one model, which is loaded once."""

from inference_service.cohort.cohort_run import CohortRun
from inference_service.cohort.scan_folder import FolderScan
from inference_service.core.progress import Progress, Stage, overall_progress
from inference_service.core.settings import Settings
from inference_service.segmentation.local_run import LocalModel
from inference_service.segmentation.pipeline import SegmentOptions
from inference_service.segmentation.result_paths import ResultPaths


def segment_each(run: CohortRun, model: LocalModel, options: SegmentOptions, settings: Settings) -> None:
    """Segments the scans that have no result yet.

    Args:
        run: The run.
        model: The model.
        options: The options for each scan.
        settings: The folder for temporary files.

    Raises:
        ModelError: The model cannot be loaded.
        TransientError, ConfigurationError, OSError, InternalError: See `CohortRun.attempt`.
    """
    loaded = False
    for scan, fingerprint in run.due():
        if not loaded:
            model.load()
            loaded = True
        with run.attempt(scan):
            with run.results.writing(scan) as folder, scan.source(settings.usable_work_path) as source:
                model.segment(source, ResultPaths(folder), options, progress=_progress(run, scan))
            run.finish(scan, fingerprint)


def _progress(run: CohortRun, scan: FolderScan) -> Progress:
    def show(stage: Stage, share: float) -> None:
        run.show(overall_progress(stage, share), f"{scan.name}: {stage}")

    return show
