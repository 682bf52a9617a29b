"""Checks of an installed model on this machine: that it runs, and how much a lower precision changes its masks."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import BadRequest, ModelInvalid
from inference_service.core.execution import Precision
from inference_service.core.progress import StageClock
from inference_service.core.scratch_space import scratch_folder
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import find_model
from inference_service.engine.session_cache import load_session, session_warnings
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan
from inference_service.segmentation.local_run import check_exists, local_execution
from inference_service.segmentation.resources import Resources, StageMonitor, job_threads
from inference_service.segmentation.volume_segmentation import segment_with_session


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
    session = load_session(model, local_execution(settings))
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
        source: The scan: a file, an archive or a folder.

    Returns:
        The share of voxels with equal labels, the Dice coefficient of the two masks for each label that occurs, and the
        seconds spent waiting for the network in each precision.

    Raises:
        BadRequest: The other precision is not supported here.
        ServiceError: See `segment_file`.
    """
    check_exists(source)
    model = find_model(settings.models_path, name, version)
    model = replace(model, manifest=model.manifest.model_copy(update={"precisions": get_args(Precision)}))
    with scratch_folder(settings.usable_work_path) as folder:
        volume = read_scan(source, folder, ReadLimits(settings.max_voxels, settings.max_input_bytes)).volume
    masks: dict[Precision, NDArray[np.unsignedinteger]] = {}
    seconds: dict[Precision, float] = {}
    for each in dict.fromkeys(("fp32", precision)):
        execution = replace(local_execution(settings), precision=each)
        session = load_session(model, execution)
        if session.precision != each:
            raise BadRequest("; ".join(warning.message for warning in session_warnings(model, execution, session)))
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


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float(2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second)))
