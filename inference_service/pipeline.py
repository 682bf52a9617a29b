"""From a file to a mask and a report: the whole of a job that needs no server, shared by the worker and `segment`."""

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from inference_service.errors import InternalError
from inference_service.inference import Network, labels_from_logits, stream_logits
from inference_service.manifest import Manifest
from inference_service.mapping import map_planes
from inference_service.models import Model, check_signature
from inference_service.nifti import write_mask
from inference_service.postprocess import clean
from inference_service.preprocess import prepare
from inference_service.readers import read_scan
from inference_service.report import InputReport, ModelReport, Report, measure_labels
from inference_service.sessions import Session
from inference_service.stages import Progress, StageClock
from inference_service.volume import Volume
from inference_service.windows import plan_windows

logger = logging.getLogger(__name__)

MASK_FILE = "mask.nii.gz"
REPORT_FILE = "report.json"

# Loaded networks that a process keeps between jobs: the least recently used one goes when another is loaded.
_WARM_SESSIONS = 2


@dataclass(frozen=True)
class Engine:
    """How networks run in this process.

    Attributes:
        providers: Execution providers, best first; what the settings call effective.
        threads: Threads of a session; None leaves it to ONNX Runtime.
        strict: Whether a model that does not run on all of the providers is refused, rather than warned of.
    """

    providers: tuple[str, ...]
    threads: int | None = None
    strict: bool = False


def segment_file(
    source: Path,
    target: Path,
    model: Model,
    engine: Engine,
    *,
    max_voxels: int,
    clock: StageClock,
    progress: Progress = lambda stage, share: None,
) -> Report:
    """Segments one scan.

    Args:
        source: The scan's file.
        target: An existing folder that gets `mask.nii.gz` and `report.json`.
        model: What to run.
        engine: What to run it on.
        max_voxels: Scans that are larger, or become so on the model's grid, are refused.
        clock: Takes the seconds of each stage.
        progress: Told of every stage and window; what it raises ends the job.

    Returns:
        The report as written.

    Raises:
        InputError: The scan cannot be used.
        ModelInvalid: The model cannot be used.
        OutOfMemory: The model needs more memory than there is.
    """
    progress("read", 0.0)
    with clock.stage("read"):
        scan = read_scan(source, max_voxels=max_voxels)
        sha256 = _sha256(source)
    progress("model_load", 0.0)
    with clock.stage("model_load"):
        session = load_session(model, engine)
    # BLAS threads of workers that share a machine fight for its cores: a plane's matrices are small enough for one.
    with threadpool_limits(1, user_api="blas"):
        mask, windows = segment_volume(
            scan.volume, model.manifest, session, max_voxels=max_voxels, clock=clock, progress=progress
        )
    progress("report", 0.0)
    with clock.stage("report"):
        labels = measure_labels(mask, scan.volume, model.manifest)
    progress("write", 0.0)
    with clock.stage("write"):
        write_mask(target / MASK_FILE, mask, scan.grid)
    manifest = model.manifest
    report = Report(
        service_version=version("inference-service"),
        input=_input_report(scan.volume, sha256),
        model=ModelReport(name=manifest.name, version=manifest.version, sha256=manifest.sha256),
        providers=session.providers,
        windows=windows,
        labels=labels,
        timings_s=dict(clock.seconds),
        warnings=_warnings(scan.replaced_voxels, engine, session),
    )
    report.write(target / REPORT_FILE)
    return report


def segment_volume(
    volume: Volume,
    manifest: Manifest,
    network: Network,
    *,
    max_voxels: int,
    clock: StageClock,
    progress: Progress = lambda stage, share: None,
) -> tuple[NDArray[np.unsignedinteger], int]:
    """Segments one volume in memory.

    Args:
        volume: The scan; its values are finite.
        manifest: How the network is fed and what its outputs stand for.
        network: The loaded model.
        max_voxels: Scans that become larger on the model's grid are refused.
        clock: Takes the seconds of each stage.
        progress: Told of every stage and window.

    Returns:
        The mask on the volume's own grid, with the least dtype that holds its labels, and the number of windows run.

    Raises:
        InputTooLarge: The model's grid would be larger than that.
    """
    progress("preprocess", 0.0)
    with clock.stage("preprocess"):
        prepared = prepare(volume, manifest, max_voxels=max_voxels)
    dtype = np.uint8 if max(label.value for label in manifest.labels) <= np.iinfo(np.uint8).max else np.uint16
    mask = np.zeros(volume.shape, dtype=dtype, order="F")
    plan = plan_windows(prepared.image.shape, manifest.window, manifest.overlap, manifest.placement)
    planes = stream_logits(
        prepared.image, network, manifest, plan, on_window=lambda done: progress("windows", done / plan.count)
    )
    with clock.stage("map"):
        map_planes(
            clock.each("windows", planes),
            depth=prepared.image.shape[plan.axis],
            decide=partial(labels_from_logits, manifest=manifest, dtype=dtype),
            target=np.moveaxis(prepared.reorientation.apply(mask), plan.axis, 0),
            kinds=[prepared.logits_kinds[axis] for axis in plan.axes],
        )
    progress("postprocess", 0.0)
    with clock.stage("postprocess"):
        clean(mask, manifest.postprocessing, voxel_volume_ml=volume.voxel_volume_ml)
    return mask, plan.count


@lru_cache(maxsize=_WARM_SESSIONS)
def load_session(model: Model, engine: Engine) -> Session:
    """Loads a model, or takes its session from memory where it is still warm.

    Raises:
        ModelInvalid: Its sha256, inputs or outputs are not what its manifest says.
        InternalError: The engine is strict, and the model does not run on all of its providers.
    """
    session = Session(model.read_network(), providers=engine.providers, threads=engine.threads)
    check_signature(model.manifest, session.input_shapes, session.output_shapes)
    for provider in _unused_providers(engine, session):
        if engine.strict:
            raise InternalError(f"REQUIRE_GPU is set, and model {model.manifest.name} does not run on {provider}")
        logger.warning("model %s does not run on %s: using %s", model.manifest.name, provider, session.providers)
    return session


def _unused_providers(engine: Engine, session: Session) -> list[str]:
    return [provider for provider in engine.providers if provider not in session.providers]


def _warnings(replaced_voxels: int, engine: Engine, session: Session) -> list[str]:
    warnings = [f"the model does not run on {provider}" for provider in _unused_providers(engine, session)]
    if replaced_voxels:
        warnings.append(f"{replaced_voxels} voxels were NaN or infinite and got the least finite value")
    return warnings


def _input_report(volume: Volume, sha256: str) -> InputReport:
    return InputReport(
        sha256=sha256,
        shape=volume.shape,
        spacing_mm=volume.spacing_mm,
        orientation=volume.orientation,
        affine=volume.affine.tolist(),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
