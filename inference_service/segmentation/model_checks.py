"""Checks of an installed model on this machine: that it runs, and how much a lower precision changes its masks."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.input_options import DEFAULT_INPUT_OPTIONS
from inference_service.contract.manifest import Manifest
from inference_service.core.errors import BadRequest
from inference_service.core.execution import ExecutionOptions, Precision
from inference_service.core.progress import StageClock
from inference_service.core.scratch_space import scratch_folder
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import Model, find_model
from inference_service.engine.session_cache import load_model
from inference_service.formats.channel_reader import read_study
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import ReadOptions
from inference_service.imaging.geometry import Volume
from inference_service.segmentation.crop_models import CropModels
from inference_service.segmentation.loaded_networks import loaded_networks
from inference_service.segmentation.local_run import check_exists, local_execution
from inference_service.segmentation.preparation.crop import SegmentBy
from inference_service.segmentation.resources import Resources, StageMonitor, job_threads
from inference_service.segmentation.volume_segmentation import segment_volume

# Size of an axis whose window is the whole image.
_FREE_AXIS_VOXELS = 64
_AXES = ("LRi", "PAj", "ISk")


def verify_model(settings: Settings, name: str, version: str | None) -> dict[str, object]:
    """Loads a model as a worker would, and runs it on noise of the size of one window.

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
    execution = local_execution(settings)
    loaded = load_model(model, execution)
    segment_volume(
        _noise(model.manifest),
        model.manifest,
        loaded_networks(loaded, execution.batch_size),
        max_voxels=settings.max_voxels,
        segment_by=_segment_by(model, execution, settings, Resources()),
    )
    return {
        "model": f"{model.manifest.name} {model.manifest.version}",
        "sha256": model.manifest.networks_sha256,
        "providers": loaded.providers,
        "precision": loaded.precision,
        "window": list(model.manifest.all_parts[0].window),
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
        limits = ReadLimits(settings.max_voxels, settings.max_input_bytes)
        options = ReadOptions(limits, DEFAULT_INPUT_OPTIONS, threads=local_execution(settings).threads)
        study = read_study(source, model.manifest.channel_names, folder, options)
    masks: dict[Precision, NDArray[np.unsignedinteger]] = {}
    seconds: dict[Precision, float] = {}
    for each in dict.fromkeys(("fp32", precision)):
        execution = replace(local_execution(settings), precision=each)
        loaded = load_model(model, execution)
        if loaded.precision != each:
            raise BadRequest("; ".join(warning.message for warning in loaded.warnings))
        clock = StageClock()
        with job_threads(execution.threads) as threads:
            resources = Resources(threads, monitor=StageMonitor(clock))
            segmentation = segment_volume(
                study.volumes(channel.name for channel in model.manifest.channels),
                model.manifest,
                loaded_networks(loaded, execution.batch_size),
                max_voxels=settings.max_voxels,
                resources=resources,
                segment_by=_segment_by(model, execution, settings, resources),
            )
        masks[each] = segmentation.mask
        seconds[each] = round(clock.seconds["network"], 3)
    first = masks["fp32"]
    second = masks[precision]
    return {
        "precision": precision,
        "label_agreement": float(np.mean(first == second)),
        "dice": {
            label.name: dice(first == label.value, second == label.value)
            for label in model.manifest.labels
            if label.value in first or label.value in second
        },
        "network_s": seconds,
    }


def _segment_by(model: Model, execution: ExecutionOptions, settings: Settings, resources: Resources) -> SegmentBy:
    return CropModels.of(model).segment_by(
        lambda other: load_model(other, execution),
        batch_size=execution.batch_size,
        max_voxels=settings.max_voxels,
        resources=resources,
    )


def _noise(manifest: Manifest) -> list[Volume]:
    """Returns noise for each channel that fills a window of the first part that runs."""
    part = manifest.every_part[0]
    # Each axis of the network is an axis of the file; the file's axes run to the right, the front and the head.
    axes = [next(axis for axis, letters in enumerate(_AXES) if letter in letters) for letter in part.orientation]
    shape = np.ones(3, dtype=np.intp)
    shape[axes] = [size or max(part.multiple_of, _FREE_AXIS_VOXELS) for size in part.window]
    spacing_mm = np.ones(3)
    spacing_mm[axes] = [mm or 1.0 for mm in part.spacing_mm]
    affine = np.diag([*spacing_mm, 1.0])
    random = np.random.default_rng(0)
    return [Volume(random.normal(size=shape).astype(np.float32), affine) for _ in manifest.channels]


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Returns the Dice coefficient of two masks of one shape, of which at least one is not empty."""
    return float(2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second)))
