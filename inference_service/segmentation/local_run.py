"""Runs models on this machine's files, without any server."""

import gzip
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self, get_args

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.report import Report
from inference_service.contract.result_files import MASK_FILE, REPORT_FILE, result_files
from inference_service.contract.task_message import OutputFormat
from inference_service.core.errors import BadRequest, GpuError, InputNotFound, InternalError, ModelInvalid, OutOfMemory
from inference_service.core.execution import ExecutionOptions, Precision
from inference_service.core.host import usable_cpus
from inference_service.core.progress import Progress, StageClock
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import find_model
from inference_service.engine.session_cache import SessionCache, load_session, session_warnings
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan
from inference_service.segmentation.pipeline import DEFAULT_SEGMENT_OPTIONS, ModelRun, SegmentOptions, segment_file
from inference_service.segmentation.resources import Resources, StageMonitor, job_threads
from inference_service.segmentation.volume_segmentation import segment_with_session

logger = logging.getLogger(__name__)

_MASK_ENDINGS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class ResultPaths:
    """Where the files of a result go: into a folder under their usual names, or to a mask's path and beside it.

    Attributes:
        folder: The folder of all files.
        mask_name: The mask's name; None for the usual names.

    >>> ResultPaths.of(Path("out")).path("report.json").as_posix()
    'out/report.json'
    >>> ResultPaths.of(Path("out/lungs.nii.gz")).path("report.json").as_posix()
    'out/lungs.report.json'
    """

    folder: Path
    mask_name: str | None = None

    @classmethod
    def of(cls, target: Path) -> Self:
        """The paths for a target, which is a mask's path if it ends in .nii or .nii.gz, and a folder otherwise."""
        is_mask = target.name.lower().endswith(_MASK_ENDINGS) and target.name.lower() not in _MASK_ENDINGS
        return cls(target.parent, target.name) if is_mask else cls(target)

    @property
    def plain_mask(self) -> bool:
        """Whether the mask's name is that of an uncompressed file."""
        return self.mask_name is not None and self.mask_name.lower().endswith(".nii")

    def path(self, file: str) -> Path:
        """The path of a file of `result_files`."""
        if self.mask_name is None:
            return self.folder / file
        if file == MASK_FILE:
            return self.folder / self.mask_name
        stem = self.mask_name[: self.mask_name.lower().rindex(".nii")]
        return self.folder / f"{stem}.{file}"

    def check_free(self) -> None:
        """Checks, before the work, that the result can be written and replaces nothing.

        Raises:
            BadRequest: A file of a result is there already, or the folder cannot be written to.
        """
        paths = (self.path(file) for file in result_files().values())
        taken = [path.name for path in paths if os.path.lexists(path)]
        if taken:
            raise BadRequest(f"{self.folder} holds {', '.join(taken)} already; choose another OUT")
        folder = self.folder.absolute()
        existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            raise BadRequest(f"{existing} is not a folder that can be written to; choose another OUT")

    def take(self, source: Path, formats: Sequence[OutputFormat]) -> None:
        """Copies a result here from a folder that has it under the usual names; all of it or nothing.

        Raises:
            InternalError: A file cannot be written.
        """
        folder = self.folder.absolute()
        with ExitStack() as undo:
            try:
                for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
                    missing.mkdir()
                    undo.callback(missing.rmdir)
                for file in result_files(formats).values():
                    plain = file == MASK_FILE and self.plain_mask
                    with (
                        gzip.open(source / file) if plain else (source / file).open("rb") as stream,
                        self.path(file).open("xb") as copy,
                    ):
                        undo.callback(self.path(file).unlink)
                        shutil.copyfileobj(stream, copy)
            except OSError as error:
                raise InternalError(f"{error.filename or self.folder} cannot be written: {error.strerror}") from error
            undo.pop_all()


def segment_locally(
    source: Path,
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
        source: The scan: a file, a zip or a folder.
        target: A folder, or the mask's path, as `ResultPaths.of` tells them apart; nothing is overwritten.
        settings: Models, providers and limits.
        model: Name of the model.
        version: Version of the model; None: the highest.
        options: The options of the request.
        progress: Called for every stage and window.

    Raises:
        BadRequest: There is a result already, or the target cannot be written to.
        ServiceError: See `segment_file`.
    """
    _check_exists(source)
    paths = ResultPaths.of(target)
    paths.check_free()
    found = find_model(settings.models_path, model, version)
    sessions = SessionCache()

    def segment(execution: ExecutionOptions) -> Report:
        # Results are moved only when all are written, so that a run that fails leaves none.
        with TemporaryDirectory(prefix="segment-", dir=settings.usable_work_path) as folder:
            try:
                report = segment_file(
                    source,
                    Path(folder),
                    ModelRun(found, execution, sessions),
                    limits=ReadLimits(settings.max_voxels, settings.max_input_bytes),
                    options=options,
                    monitor=StageMonitor(progress=progress),
                )
            except MemoryError as error:
                raise OutOfMemory("the scan needs more memory than this machine has") from error
            report = report.model_copy(update={"files": [paths.path(file).name for file in report.files]})
            report.write(Path(folder, REPORT_FILE))
            paths.take(Path(folder), options.formats)
        return report

    execution = _execution_options(settings)
    try:
        return segment(execution)
    except GpuError as error:
        logger.warning("%s: the model runs on the CPU instead", error)
    return segment(execution.on_cpu())


def verify_model(settings: Settings, name: str, version: str | None) -> dict[str, object]:
    """Loads a model as a worker would, and runs it on one window of noise.

    Args:
        settings: Models and providers.
        name: Name of the model.
        version: Version of the model; None: the highest.

    Returns:
        The model's name and version, sha256, window and labels, and the providers and precision that it runs in.

    Raises:
        ModelNotFound: There is no model of that name and version.
        ModelInvalid: The manifest does not match the network, or its logits are not finite.
    """
    model = find_model(settings.models_path, name, version)
    session = load_session(model, _execution_options(settings))
    shape = (session.fixed_batch_size or 1, 1, *model.manifest.window)
    logits = session.run(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    if not np.isfinite(logits).all():
        raise ModelInvalid(f"model {name}: the network gives values that are not finite")
    return {
        "model": f"{model.manifest.name} {model.manifest.version}",
        "sha256": model.manifest.sha256,
        "providers": session.providers,
        "precision": session.precision,
        "window": list(model.manifest.window),
        "labels": {label.value: label.name for label in model.manifest.labels},
    }


def compare_precisions(
    settings: Settings, name: str, version: str | None, *, precision: Precision, source: Path
) -> dict[str, object]:
    """Segments a scan in fp32 and in another precision, even if the manifest does not allow it.

    Args:
        settings: Models, providers and limits.
        name: Name of the model.
        version: Version of the model; None: the highest.
        precision: The other precision.
        source: The scan: a file, a zip or a folder.

    Returns:
        The share of voxels with equal labels, the Dice coefficient of the two masks for each label that occurs, and the
        seconds of the network in each precision.

    Raises:
        BadRequest: The other precision is not supported here.
        ServiceError: See `segment_file`.
    """
    _check_exists(source)
    model = find_model(settings.models_path, name, version)
    model = replace(model, manifest=model.manifest.model_copy(update={"precisions": get_args(Precision)}))
    with TemporaryDirectory(prefix="compare-", dir=settings.usable_work_path) as folder:
        volume = read_scan(source, Path(folder), ReadLimits(settings.max_voxels)).volume
    masks: dict[Precision, NDArray[np.unsignedinteger]] = {}
    seconds: dict[Precision, float] = {}
    for each in dict.fromkeys(("fp32", precision)):
        execution = replace(_execution_options(settings), precision=each)
        session = load_session(model, execution)
        if session.precision != each:
            raise BadRequest("; ".join(session_warnings(model, execution, session)))
        clock = StageClock()
        with job_threads(execution.threads) as threads:
            segmentation = segment_with_session(
                volume,
                model.manifest,
                session,
                batch_size=execution.batch_size,
                max_voxels=settings.max_voxels,
                resources=Resources(threads, monitor=StageMonitor(clock)),
            )
        masks[each] = segmentation.mask
        seconds[each] = round(clock.seconds["network"], 3)
    first = masks["fp32"]
    second = masks[precision]
    return {
        "precision": precision,
        "label_agreement": float(np.mean(first == second)),
        "dice": {
            label.name: _dice(first == label.value, second == label.value)
            for label in model.manifest.labels
            if label.value in first or label.value in second
        },
        "network_s": seconds,
    }


def _check_exists(source: Path) -> None:
    if not source.exists():
        raise InputNotFound("there is no such file or folder")


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float(2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second)))


def _execution_options(settings: Settings) -> ExecutionOptions:
    return ExecutionOptions(
        tuple(settings.effective_onnx_providers),
        settings.intra_op_threads or usable_cpus(),
        precision=settings.onnx_precision,
        batch_size=settings.window_batch,
        gpu=settings.gpu_options,
    )
