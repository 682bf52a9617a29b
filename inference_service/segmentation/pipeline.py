"""From a file to its mask and report: the part of a job that needs no server, shared by the worker and `segment`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.input_options import DEFAULT_INPUT_OPTIONS, InputOptions
from inference_service.contract.manifest import Manifest
from inference_service.contract.report import LabelReport, Report
from inference_service.contract.result_files import (
    MASK_FILE,
    PREVIEW_FILE,
    RASTER_FILES,
    REPORT_FILE,
    SCAN_FILE,
    SEGMENTATION_FILES,
    result_files,
)
from inference_service.contract.task_message import OutputFormat
from inference_service.core.errors import BadRequest
from inference_service.core.execution import ExecutionOptions
from inference_service.core.files import Checksum, Sources, input_sha256
from inference_service.core.memory_budget import MemoryBudget
from inference_service.core.progress import StageClock
from inference_service.engine.model_registry import Model
from inference_service.engine.session import RUNTIME_VERSION
from inference_service.engine.session_cache import LoadedModel, SessionCache
from inference_service.formats.channel_reader import Study, read_study
from inference_service.formats.dicom.segmentation_writer import (
    UidSeed,
    WrittenSegmentation,
    write_segmentation,
)
from inference_service.formats.dicom.source_references import SourceSeries
from inference_service.formats.nifti import write_mask, write_scan
from inference_service.formats.raster.writer import write_metaimage, write_segmentation_nrrd
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import ReadOptions, Scan
from inference_service.imaging.components import find_components
from inference_service.imaging.shear import find_shear
from inference_service.segmentation.crop_models import CropModels
from inference_service.segmentation.job_report import input_report, model_report, options_report
from inference_service.segmentation.labels.label_statistics import measure_labels
from inference_service.segmentation.loaded_networks import loaded_networks
from inference_service.segmentation.modality_check import check_modality
from inference_service.segmentation.preview.page import draw_preview
from inference_service.segmentation.resources import Resources, StageMonitor, job_threads
from inference_service.segmentation.volume_segmentation import VolumeSegmentation, segment_volume


@dataclass(frozen=True)
class ModelRun:
    """A model, and the options with which it runs.

    Attributes:
        model: The model.
        execution: Providers, threads and precision of the network.
        sessions: Keeps its networks loaded between jobs.
        crop_models: The models by which it crops the scan; None: they lie beside it.
    """

    model: Model
    execution: ExecutionOptions
    sessions: SessionCache
    crop_models: CropModels | None = None

    @property
    def manifest(self) -> Manifest:
        """The model's manifest."""
        return self.model.manifest

    def load(self, model: Model | None = None) -> LoadedModel:
        """Returns the loaded networks of the model, or of another one; raises the errors of `load_model`."""
        return self.sessions.load(model or self.model, self.execution)


@dataclass(frozen=True)
class SegmentOptions:
    """The options of a request, beside the input and the model.

    Attributes:
        input_options: Options for reading and checking the input.
        formats: Formats of the mask.
        scan: Whether the scan is written, too.
        job_id: The job, from which the UIDs of DICOM objects are derived; None: a new one.
    """

    input_options: InputOptions = DEFAULT_INPUT_OPTIONS
    formats: Sequence[OutputFormat] = ("nifti",)
    scan: bool = False
    job_id: UUID | None = None

    @property
    def files(self) -> list[str]:
        """The names of the result's files."""
        return list(result_files(self.formats, scan=self.scan).values())


DEFAULT_SEGMENT_OPTIONS = SegmentOptions()


@dataclass(frozen=True)
class _Input:
    """The input as it was read.

    Attributes:
        study: The scan of each channel.
        sha256: Hash of the whole input.
    """

    study: Study
    sha256: str

    @property
    def scan(self) -> Scan:
        """The scan on whose grid the mask lies."""
        return self.study.first


@dataclass(frozen=True)
class _Description:
    """The mask on the scan's own grid, its labels' figures and its preview.

    Attributes:
        mask: Shape (i, j, k), on the grid of `scan.volume`.
        labels: Figures of each label of the manifest.
        preview: A PNG.
    """

    mask: NDArray[np.unsignedinteger]
    labels: list[LabelReport]
    preview: bytes


@dataclass(frozen=True)
class _Results:
    """The results of the steps of one segmentation.

    Attributes:
        read: The scan.
        segmentation: The mask on the grid that the network saw, and figures of the run.
        description: The mask on the scan's own grid.
        written: Descriptions of the DICOM objects.
        checksums: Of each written file, by name.
    """

    read: _Input
    segmentation: VolumeSegmentation
    description: _Description
    written: list[WrittenSegmentation]
    checksums: dict[str, Checksum]


def segment_file(
    sources: Sources,
    target: Path,
    model: ModelRun,
    *,
    limits: ReadLimits,
    options: SegmentOptions = DEFAULT_SEGMENT_OPTIONS,
    monitor: StageMonitor,
) -> Report:
    """Segments one scan, of one channel or several: reads it, segments it, describes the mask, writes the results.

    Args:
        sources: The scan: a file, an archive or a folder; or one for each channel of the model.
        target: An existing folder for the files of `result_files`; archives are unpacked there, too.
        model: The model, and the options with which it runs.
        limits: Larger inputs are refused, and scans that become larger on the model's grid.
        options: The options of the request.
        monitor: Follows the stages.

    Returns:
        The report as written.

    Raises:
        InputError: The scan cannot be used.
        BadRequest: The sources are not those of the model's channels, or a requested DICOM format needs a DICOM series
            and a label other than 0.
        ModelNotFound: A model by which the scan is cropped is not installed.
        ModelInvalid: The model, or one by which the scan is cropped, cannot be used.
        OutOfMemory: The job does not fit into memory.
        GpuError: The GPU has not enough memory for the job, or failed.
    """
    memory = MemoryBudget(target, model.execution.concurrency)
    with monitor.stage("read"):
        read = _read(sources, target, model, replace(limits, require_memory=memory.require), options, monitor)
    with monitor.stage("model_load"):
        loaded = model.load()
        crop_models = model.crop_models or CropModels.of(model.model)
        model = replace(model, crop_models=crop_models)
    with job_threads(model.execution.threads) as threads:
        resources = Resources(threads, memory, monitor)
        segmentation = segment_volume(
            read.study.volumes(channel.name for channel in model.manifest.channels),
            model.manifest,
            loaded_networks(loaded, model.execution.batch_size),
            max_voxels=limits.max_voxels,
            resources=resources,
            segment_by=crop_models.segment_by(
                model.load, batch_size=model.execution.batch_size, max_voxels=limits.max_voxels, resources=resources
            ),
        )
        description = _describe(read.scan, segmentation.mask, model.manifest, resources)
        with monitor.stage("write"):
            written = _write(target, read, description, model.manifest, options, memory)
            checksums = {name: Checksum.of_file(target / name) for name in _other_files(options)}
    results = _Results(read, segmentation, description, written, checksums)
    report = _report(model, loaded, options, results, monitor.clock)
    report.write(target / REPORT_FILE)
    return report


def _read(
    sources: Sources,
    target: Path,
    model: ModelRun,
    limits: ReadLimits,
    options: SegmentOptions,
    monitor: StageMonitor,
) -> _Input:
    """Reads the scan of each channel, and checks that the model and the formats can be applied to it."""
    manifest = model.manifest
    modalities = {channel.name: channel.modality or manifest.modality for channel in manifest.channels}
    read: list[str] = []

    def check(name: str, scan: Scan) -> None:
        if not read:
            _check_formats(options.formats, scan, manifest)
        if options.input_options.modality_check:
            check_modality(modalities[name], scan.modality, scan.volume.voxels, scan.value_type)
        read.append(name)
        monitor.progress("read", len(read) / len(modalities))

    read_options = ReadOptions(limits, options.input_options, model.execution.threads)
    study = read_study(sources, manifest.channel_names, target, read_options, check)
    return _Input(study, input_sha256(sources, manifest.channel_names))


def _describe(scan: Scan, mask: NDArray[np.unsignedinteger], manifest: Manifest, resources: Resources) -> _Description:
    """Brings the mask back to the scan's own grid where it was aligned, measures its labels and draws the preview."""
    with resources.monitor.stage("report"):
        if scan.aligned:
            mask = scan.aligned.restore_mask(mask)
        components = find_components(mask, [label.value for label in manifest.labels])
        labels = measure_labels(mask, scan.volume, manifest, components, threads=resources.threads)
    with resources.monitor.stage("preview"):
        modality = scan.modality or manifest.modality
        preview = draw_preview(scan.volume, mask, labels, components, modality=modality)
    return _Description(mask, labels, preview)


def _write(
    target: Path,
    read: _Input,
    description: _Description,
    manifest: Manifest,
    options: SegmentOptions,
    memory: MemoryBudget,
) -> list[WrittenSegmentation]:
    """Writes all files but the report, and returns descriptions of the DICOM objects."""
    write_mask(target / MASK_FILE, description.mask, read.scan.grid)
    if options.scan:
        write_scan(target / SCAN_FILE, read.scan.volume.voxels, read.scan.grid)
    (target / PREVIEW_FILE).write_bytes(description.preview)
    affine = read.scan.volume.affine
    if "nrrd" in options.formats:
        write_segmentation_nrrd(target / RASTER_FILES["nrrd"], description.mask, affine, manifest)
    if "mha" in options.formats:
        write_metaimage(target / RASTER_FILES["mha"], description.mask, affine)
    files = [file for format_name, file in SEGMENTATION_FILES.items() if format_name in options.formats]
    if not files:
        return []
    scan = read.scan
    mask = description.mask
    if scan.evenly_spaced:
        memory.require(mask.nbytes)
        mask = scan.evenly_spaced.restore_mask(mask)
    source = SourceSeries(scan.slices, evenly_spaced=scan.evenly_spaced is None)
    uid_seed = UidSeed(options.job_id or uuid4(), read.sha256)
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
        for name, segmentation_type in files
    ]


def _check_formats(formats: Sequence[OutputFormat], scan: Scan, manifest: Manifest) -> None:
    dicom_formats = [format_name for format_name in SEGMENTATION_FILES if format_name in formats]
    if dicom_formats and scan.input_format != "dicom":
        raise BadRequest(
            f"request.output.formats: {dicom_formats[0]} refers to the slices of a DICOM series, and the input is none"
        )
    if "mha" in formats and find_shear(scan.volume.affine) is not None:
        raise BadRequest(
            "request.output.formats: mha cannot hold the grid of this scan, whose axes are not at right angles"
        )
    if dicom_formats and not any(label.value for label in manifest.labels):
        raise BadRequest(
            f"request.output.formats: {dicom_formats[0]} needs a label other than 0, and the model has none"
        )


def _other_files(options: SegmentOptions) -> list[str]:
    """The names of the files that a report describes: all files of a result but the report itself."""
    return [name for name in options.files if name != REPORT_FILE]


def _report(
    model: ModelRun, loaded: LoadedModel, options: SegmentOptions, results: _Results, clock: StageClock
) -> Report:
    return Report(
        service_version=version("inference-service"),
        onnxruntime_version=RUNTIME_VERSION,
        input=input_report(results.read.study, results.read.sha256, results.segmentation.cropped_to),
        options=options_report(options.input_options),
        model=model_report(model.model, model.crop_models or CropModels({})),
        providers=loaded.providers,
        precision=loaded.precision,
        windows=results.segmentation.windows,
        labels=results.description.labels,
        timings_s=dict(clock.seconds),
        files=_other_files(options),
        checksums=results.checksums,
        empty_segments=sorted({name for written in results.written for name in written.empty_segments}),
        warnings=[
            *loaded.warnings,
            *results.read.study.warnings,
            *results.segmentation.warnings,
            *dict.fromkeys(warning for written in results.written for warning in written.warnings),
        ],
    )
