"""The pipeline on this machine's files, without any server."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.input_options import DEFAULT_INPUT_OPTIONS, InputOptions
from inference_service.contract.report import Report
from inference_service.contract.result_files import result_files
from inference_service.contract.task_message import OutputFormat
from inference_service.core.errors import BadRequest, GpuError, InputNotFound, ModelInvalid, OutOfMemory
from inference_service.core.execution import ExecutionOptions, Precision
from inference_service.core.host import usable_cpus
from inference_service.core.progress import Progress, StageClock
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import find_model
from inference_service.engine.session_cache import SessionCache, load_session, session_warnings
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan
from inference_service.segmentation.pipeline import segment_file
from inference_service.segmentation.volume_segmentation import job_threads, segment_volume

logger = logging.getLogger(__name__)


def segment_locally(
    source: Path,
    target: Path,
    settings: Settings,
    *,
    model: str,
    version: str | None,
    input_options: InputOptions = DEFAULT_INPUT_OPTIONS,
    formats: Sequence[OutputFormat] = ("nifti",),
    progress: Progress,
) -> Report:
    """Segments a scan with all of this machine's CPUs.

    Args:
        source: The scan: a file, a zip or a folder.
        target: The folder that gets the results; made where it is missing, never with anything overwritten in it.
        settings: Models, providers and limits.
        model: Name of the model.
        version: Its version; None takes the highest.
        input_options: What is said of the input.
        formats: What the mask is written as.
        progress: Told of every stage and window.

    Raises:
        BadRequest: The folder holds a result already.
        ServiceError: As the pipeline.
    """
    _check_there(source)
    taken = [name for name in result_files().values() if (target / name).exists()]
    if taken:
        raise BadRequest(f"{target} holds {' and '.join(taken)} already; choose another folder")
    found = find_model(settings.models_path, model, version)
    sessions = SessionCache()

    def segment(execution: ExecutionOptions) -> Report:
        # Elsewhere first: a run that fails leaves nothing.
        with TemporaryDirectory(prefix="segment-", dir=settings.usable_work_path) as folder:
            try:
                report = segment_file(
                    source, Path(folder), found, execution,
                    max_voxels=settings.max_voxels, max_bytes=settings.max_input_bytes, input_options=input_options,
                    formats=formats, sessions=sessions, clock=StageClock(), progress=progress,
                )  # fmt: skip
            except MemoryError as error:
                raise OutOfMemory("the scan needs more memory than this machine has") from error
            target.mkdir(parents=True, exist_ok=True)
            for name in result_files(formats).values():
                shutil.move(Path(folder) / name, target / name)
        return report

    execution = _execution_options(settings)
    try:
        return segment(execution)
    except GpuError as error:
        logger.warning("%s: it runs on the CPU", error)
    return segment(execution.on_cpu())


def verify_model(settings: Settings, name: str, version: str | None) -> dict[str, object]:
    """Loads a model as a worker would, and runs one window of noise through it.

    Raises:
        ModelNotFound: There is none of that name and version.
        ModelInvalid: Manifest, file and network do not agree, or the network gives what is no number.
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
    """Segments a scan in fp32 and in another precision, whether or not the manifest allows it yet.

    Returns:
        Share of the scan's voxels with equal labels; for each label that occurs the Dice coefficient of its two masks;
        seconds of the network in each precision.

    Raises:
        BadRequest: The other precision cannot be computed here.
        ServiceError: As the pipeline.
    """
    _check_there(source)
    model = find_model(settings.models_path, name, version)
    model = replace(model, manifest=model.manifest.model_copy(update={"precisions": get_args(Precision)}))
    with TemporaryDirectory(prefix="compare-", dir=settings.usable_work_path) as folder:
        volume = read_scan(source, Path(folder), ReadLimits(settings.max_voxels)).volume
    masks: dict[Precision, NDArray[np.unsignedinteger]] = {}
    seconds: dict[Precision, float] = {}
    for each in dict.fromkeys(("fp32", precision)):
        execution, clock = replace(_execution_options(settings), precision=each), StageClock()
        session = load_session(model, execution)
        if session.precision != each:
            raise BadRequest("; ".join(session_warnings(model, execution, session)))
        with job_threads(execution.threads) as threads:
            segmented = segment_volume(
                volume, model.manifest, session,
                max_voxels=settings.max_voxels, clock=clock, threads=threads,
                batch=session.fixed_batch_size or execution.batch_size, smaller_batch=session.fixed_batch_size is None,
            )  # fmt: skip
        masks[each], seconds[each] = segmented.mask, round(clock.seconds["network"], 3)
    first, second = masks["fp32"], masks[precision]
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


def _check_there(source: Path) -> None:
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
