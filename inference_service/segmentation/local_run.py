"""Segments scans on this machine, without any server."""

import gzip
import logging
from contextlib import suppress
from pathlib import Path

from inference_service.contract.report import Report
from inference_service.contract.result_files import MASK_FILE, REPORT_FILE
from inference_service.core.errors import GpuError, GpuFailed, InputNotFound, OutOfMemory
from inference_service.core.execution import ExecutionOptions
from inference_service.core.files import Checksum, Sources
from inference_service.core.host import usable_cpus
from inference_service.core.progress import Progress
from inference_service.core.scratch_space import scratch_folder
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import Model, find_model
from inference_service.engine.session_cache import SessionCache
from inference_service.formats.read_limits import ReadLimits
from inference_service.segmentation.pipeline import DEFAULT_SEGMENT_OPTIONS, ModelRun, SegmentOptions, segment_file
from inference_service.segmentation.resources import StageMonitor
from inference_service.segmentation.result_paths import ResultPaths

logger = logging.getLogger(__name__)


def segment_locally(
    sources: Sources,
    target: Path,
    settings: Settings,
    *,
    model: str,
    version: str | None,
    options: SegmentOptions = DEFAULT_SEGMENT_OPTIONS,
    progress: Progress,
) -> Report:
    """Segments a scan with all of this machine's CPUs.

    Args:
        sources: The scan: a file, an archive or a folder; or one for each channel of the model.
        target: A folder, or the mask's path, if it ends in .nii or .nii.gz; nothing is overwritten.
        settings: Models, providers and limits.
        model: Name of the model.
        version: Version of the model; None: the highest.
        options: The options of the request.
        progress: Called for every stage and window.

    Raises:
        BadRequest: There is a result already, or the target cannot be written to.
        ServiceError: See `segment_file`.
    """
    paths = ResultPaths.of(target)
    # Before the model is looked for, and the providers are probed.
    _check(sources, paths, options)
    return LocalModel(settings, model, version).segment(sources, paths, options, progress=progress)


class LocalModel:
    """A model that segments scans on this machine, one after another; its networks stay loaded.

    Args:
        settings: Models, providers and limits.
        model: Name of the model.
        version: Version of the model; None: the highest.

    Raises:
        ModelError: See `find_model`.
    """

    def __init__(self, settings: Settings, model: str, version: str | None) -> None:
        self._settings = settings
        self._found = find_model(settings.models_path, model, version)
        self._sessions = SessionCache()
        self._execution = local_execution(settings)

    @property
    def model(self) -> Model:
        """The model."""
        return self._found

    def load(self) -> None:
        """Loads the networks; raises the errors of `load_model`."""
        with suppress(GpuError):  # the run of a scan falls back to the CPU
            ModelRun(self._found, self._execution, self._sessions).load()

    def segment(self, sources: Sources, paths: ResultPaths, options: SegmentOptions, *, progress: Progress) -> Report:
        """Segments one scan; see `segment_locally`."""
        _check(sources, paths, options)
        try:
            return self._segment(sources, paths, options, self._execution, progress)
        except GpuError as error:
            logger.warning("%s: the model runs on the CPU instead", error)
            if isinstance(error, GpuFailed):
                self._execution = self._execution.on_cpu()
        return self._segment(sources, paths, options, self._execution.on_cpu(), progress)

    def _segment(
        self,
        sources: Sources,
        paths: ResultPaths,
        options: SegmentOptions,
        execution: ExecutionOptions,
        progress: Progress,
    ) -> Report:
        # Results are copied only when all are written, so that a run that fails leaves none.
        with scratch_folder(self._settings.usable_work_path) as folder:
            try:
                report = segment_file(
                    sources,
                    folder,
                    ModelRun(self._found, execution, self._sessions),
                    limits=ReadLimits(self._settings.max_voxels, self._settings.max_input_bytes),
                    options=options,
                    monitor=StageMonitor(progress=progress),
                )
            except MemoryError as error:
                raise OutOfMemory("the scan needs more memory than this machine has") from error
            if paths.mask_name is not None:
                report = _with_names(report, paths, folder)
                report.write(folder / REPORT_FILE)
            paths.copy_from(folder, options.files)
        return report


def _check(sources: Sources, paths: ResultPaths, options: SegmentOptions) -> None:
    for source in [sources] if isinstance(sources, Path) else sources.values():
        check_exists(source)
    paths.check_free(options.files)


def _with_names(report: Report, paths: ResultPaths, folder: Path) -> Report:
    """The report of files that get other names, and of the mask if it is decompressed."""
    checksums = {paths.path(file).name: checksum for file, checksum in report.checksums.items()}
    if paths.plain_mask:
        with gzip.open(folder / MASK_FILE) as mask:
            checksums[paths.path(MASK_FILE).name] = Checksum.of(mask)
    return report.model_copy(update={"files": list(checksums), "checksums": checksums})


def check_exists(source: Path) -> None:
    """Raises InputNotFound if there is no such file or folder."""
    if not source.exists():
        raise InputNotFound("there is no such file or folder")


def local_execution(settings: Settings) -> ExecutionOptions:
    """Returns the options with which a model runs on all of this machine's CPUs, or on its GPU."""
    return ExecutionOptions(
        tuple(settings.effective_onnx_providers),
        settings.intra_op_threads or usable_cpus(),
        precision=settings.onnx_precision,
        batch_size=settings.window_batch,
        gpu=settings.gpu_options,
    )
