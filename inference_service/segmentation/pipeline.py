"""From a file to a mask and a report: the whole of a job that needs no server, shared by the worker and `segment`."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.input_options import DEFAULT_INPUT_OPTIONS, InputOptions
from inference_service.contract.manifest import Manifest
from inference_service.contract.report import InputReport, ModelReport, OptionsReport, Report
from inference_service.contract.result_files import (
    MASK_FILE,
    PREVIEW_FILE,
    REPORT_FILE,
    SEGMENTATION_FILES,
    result_files,
)
from inference_service.contract.task_message import OutputFormat
from inference_service.core.errors import BadRequest
from inference_service.core.execution import ExecutionOptions
from inference_service.core.files import input_sha256
from inference_service.core.memory_budget import MemoryBudget
from inference_service.core.progress import Progress, StageClock
from inference_service.engine.model_registry import Model
from inference_service.engine.session import RUNTIME_VERSION, Session
from inference_service.engine.session_cache import SessionCache, session_warnings
from inference_service.formats.dicom.segmentation_writer import (
    UidSeed,
    WrittenSegmentation,
    write_segmentation,
)
from inference_service.formats.dicom.source_references import SourceSeries
from inference_service.formats.nifti import write_mask
from inference_service.formats.read_limits import DEFAULT_MAX_BYTES, ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan
from inference_service.imaging.components import find_components
from inference_service.imaging.geometry import Box
from inference_service.segmentation.device_aggregator import DeviceSession
from inference_service.segmentation.label_statistics import measure_labels
from inference_service.segmentation.modality_check import check_modality
from inference_service.segmentation.preview.page import draw_preview
from inference_service.segmentation.volume_segmentation import job_threads, segment_volume


def segment_file(
    source: Path,
    target: Path,
    model: Model,
    execution: ExecutionOptions,
    *,
    max_voxels: int,
    max_bytes: int = DEFAULT_MAX_BYTES,
    input_options: InputOptions = DEFAULT_INPUT_OPTIONS,
    formats: Sequence[OutputFormat] = ("nifti",),
    job_id: UUID | None = None,
    sessions: SessionCache,
    clock: StageClock,
    progress: Progress = lambda stage, share: None,
) -> Report:
    """Segments one scan.

    Args:
        source: The scan: a file, a zip or a folder.
        target: An existing folder that gets the files of `result_files`; a zip is unpacked there, too.
        model: What to run.
        execution: What to run it on.
        max_voxels: Scans that are larger, or become so on the model's grid, are refused.
        max_bytes: So are zips and folders of more.
        input_options: What the request says of its input.
        formats: What the mask is written as.
        job_id: DICOM objects have their UIDs from it; None makes a new one.
        sessions: Loaded networks, which stay loaded for the next job.
        clock: Takes the seconds of each stage.
        progress: Told of every stage and window; what it raises ends the job.

    Returns:
        The report as written.

    Raises:
        InputError: The scan cannot be used.
        BadRequest: The scan is not one that such a format can refer to.
        ModelInvalid: The model cannot be used.
        OutOfMemory: The model needs more memory than there is.
        GpuError: The GPU has not enough memory for it, or failed.
    """
    memory, manifest = MemoryBudget(target, execution.concurrency), model.manifest
    progress("read", 0.0)
    with clock.stage("read"):
        scan = read_scan(
            source,
            target,
            ReadLimits(max_voxels, max_bytes, memory.require),
            input_options=input_options,
            threads=execution.threads,
        )
        _check_formats(formats, scan, manifest)
        if input_options.modality_check:
            check_modality(manifest.modality, scan.modality, scan.volume.voxels)
        sha256 = input_sha256(source)
    progress("model_load", 0.0)
    with clock.stage("model_load"):
        session = sessions.load(model, execution)
    with job_threads(execution.threads) as threads:
        segmented = segment_volume(
            scan.aligned.volume if scan.aligned else scan.volume, manifest, session,
            max_voxels=max_voxels, clock=clock, progress=progress,
            batch=session.fixed_batch_size or execution.batch_size, smaller_batch=session.fixed_batch_size is None,
            ahead=session.on_gpu,
            on_device=DeviceSession(session) if session.aggregates_on_device else None,
            threads=threads, memory=memory,
        )  # fmt: skip
        progress("report", 0.0)
        with clock.stage("report"):
            mask = segmented.mask
            if scan.aligned:
                mask = scan.aligned.restore_mask(mask)
            components = find_components(mask, [label.value for label in manifest.labels])
            labels = measure_labels(mask, scan.volume, manifest, components, threads=threads)
        progress("preview", 0.0)
        with clock.stage("preview"):
            modality = scan.modality or manifest.modality
            preview = draw_preview(scan.volume, mask, labels, components, modality=modality)
        progress("write", 0.0)
        with clock.stage("write"):
            write_mask(target / MASK_FILE, mask, scan.grid)
            (target / PREVIEW_FILE).write_bytes(preview)
            uid_seed = UidSeed(job_id or uuid4(), sha256)
            written = _write_segmentations(target, mask, scan, manifest, formats, uid_seed=uid_seed, memory=memory)
    report = Report(
        service_version=version("inference-service"),
        onnxruntime_version=RUNTIME_VERSION,
        input=_input_report(scan, sha256, segmented.cropped_to),
        options=OptionsReport(
            series=input_options.series,
            tolerate=list(input_options.tolerate),
            modality_check=input_options.modality_check,
        ),
        model=ModelReport(name=manifest.name, version=manifest.version, sha256=manifest.sha256),
        providers=session.providers,
        precision=session.precision,
        windows=segmented.windows,
        labels=labels,
        timings_s=dict(clock.seconds),
        files=[name for name in result_files(formats).values() if name != REPORT_FILE],
        empty_segments=sorted({name for each in written for name in each.empty_segments}),
        warnings=[
            *_warnings(scan, model, execution, session),
            *segmented.notes,
            *dict.fromkeys(warning for each in written for warning in each.warnings),
        ],
    )
    report.write(target / REPORT_FILE)
    return report


def _check_formats(formats: Sequence[OutputFormat], scan: Scan, manifest: Manifest) -> None:
    wanted = [form for form in SEGMENTATION_FILES if form in formats]
    if wanted and scan.input_format != "dicom":
        raise BadRequest(
            f"request.output.formats: {wanted[0]} refers to the slices of a DICOM series, the input is none"
        )
    if wanted and not any(label.value for label in manifest.labels):
        raise BadRequest(f"request.output.formats: {wanted[0]} has segments, the model has no label but 0")


def _write_segmentations(
    target: Path,
    mask: NDArray[np.unsignedinteger],
    scan: Scan,
    manifest: Manifest,
    formats: Sequence[OutputFormat],
    *,
    uid_seed: UidSeed,
    memory: MemoryBudget,
) -> list[WrittenSegmentation]:
    wanted = [SEGMENTATION_FILES[form] for form in SEGMENTATION_FILES if form in formats]
    if not wanted:
        return []
    if scan.evenly_spaced:
        memory.require(mask.nbytes)
        mask = scan.evenly_spaced.restore_mask(mask)
    source = SourceSeries(scan.slices, evenly_spaced=scan.evenly_spaced is None)
    return [
        write_segmentation(
            target / name,
            mask,
            source,
            manifest,
            segmentation_type=segmentation_type,
            uid_seed=uid_seed,
            require_memory=memory.require,
        )
        for name, segmentation_type in wanted
    ]


def _warnings(scan: Scan, model: Model, execution: ExecutionOptions, session: Session) -> list[str]:
    warnings = [f"the model: {warning}" for warning in session_warnings(model, execution, session)]
    warnings += [f"the scan: {warning}" for warning in scan.warnings]
    if scan.replaced_voxels:
        warnings.append(f"{scan.replaced_voxels} voxels were NaN or infinite and got the least finite value")
    return warnings


def _input_report(scan: Scan, sha256: str, cropped_to: Box) -> InputReport:
    volume = scan.volume
    # The crop of an aligned scan is not one of its own axes.
    cropped = scan.aligned is None and any(
        side != slice(0, size) for side, size in zip(cropped_to, volume.shape, strict=True)
    )
    return InputReport(
        kind=scan.input_format,
        sha256=sha256,
        shape=volume.shape,
        spacing_mm=volume.spacing_mm,
        orientation=volume.orientation,
        affine=volume.affine.tolist(),
        modality=scan.modality or None,
        slices=len(scan.slices) or None,
        set_aside=dict(scan.set_aside),
        replaced_voxels=scan.replaced_voxels,
        cropped_to=[(side.start, side.stop) for side in cropped_to] if cropped else None,
    )
