"""From a file to a mask and a report: the whole of a job that needs no server, shared by the worker and `segment`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import get_args
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from inference_service.crop import crop_box
from inference_service.decide import labels_from_logits
from inference_service.device_sums import OnDevice
from inference_service.dicom_seg import Identity, Kind, Written, write_segmentation
from inference_service.engine import Engine, load_session, session_warnings
from inference_service.errors import BadRequest
from inference_service.inference import DeviceNetwork, Network, stream_logits
from inference_service.manifest import Manifest
from inference_service.mapping import map_planes
from inference_service.memory import Memory
from inference_service.modality import check_modality
from inference_service.models import Model
from inference_service.nifti import write_mask
from inference_service.parallel import ALONE, Threads
from inference_service.postprocess import clean
from inference_service.preprocess import prepare
from inference_service.preview import draw_preview
from inference_service.readers import MOST_BYTES, NO_WISHES, Scan, Wishes, read_scan
from inference_service.regions import find_regions
from inference_service.report import InputReport, ModelReport, OptionsReport, Report, measure_labels
from inference_service.request import Format
from inference_service.sessions import RUNTIME_VERSION, Session
from inference_service.stages import Progress, StageClock
from inference_service.volume import Box, Volume
from inference_service.windows import plan_windows

MASK_FILE = "mask.nii.gz"
REPORT_FILE = "report.json"
PREVIEW_FILE = "preview.png"
_SEGMENTATIONS: Mapping[Format, tuple[str, Kind]] = {
    "dicom-seg": ("segmentation.dcm", "binary"),
    "dicom-labelmap": ("labelmap.dcm", "labelmap"),
}

# Divided by their weights, two by two; held by the mapping; on their way to it.
_PLANES_UNDER_WAY = 6


def segment_file(
    source: Path,
    target: Path,
    model: Model,
    engine: Engine,
    *,
    max_voxels: int,
    max_bytes: int = MOST_BYTES,
    wishes: Wishes = NO_WISHES,
    formats: Sequence[Format] = ("nifti",),
    job_id: UUID | None = None,
    clock: StageClock,
    progress: Progress = lambda stage, share: None,
) -> Report:
    """Segments one scan.

    Args:
        source: The scan: a file, a zip or a folder.
        target: An existing folder that gets the files of `result_files`; a zip is unpacked there, too.
        model: What to run.
        engine: What to run it on.
        max_voxels: Scans that are larger, or become so on the model's grid, are refused.
        max_bytes: So are zips and folders of more.
        wishes: What the request says of its input.
        formats: What the mask is written as.
        job_id: DICOM objects have their UIDs from it; None makes a new one.
        clock: Takes the seconds of each stage.
        progress: Told of every stage and window; what it raises ends the job.

    Returns:
        The report as written.

    Raises:
        InputError: The scan cannot be used.
        BadRequest: The scan is not one that such a format can refer to.
        ModelInvalid: The model cannot be used.
        OutOfMemory: The model needs more memory than there is.
    """
    memory, manifest = Memory(target, engine.jobs), model.manifest
    progress("read", 0.0)
    with clock.stage("read"):
        scan = read_scan(
            source,
            target,
            max_voxels=max_voxels,
            max_bytes=max_bytes,
            require=memory.require,
            wishes=wishes,
            threads=engine.threads,
        )
        _check_formats(formats, scan, manifest)
        if wishes.modality_check:
            check_modality(manifest.modality, scan.modality, scan.volume.voxels)
        sha256 = input_sha256(source)
    progress("model_load", 0.0)
    with clock.stage("model_load"):
        session = load_session(model, engine)
    with numeric_threads(engine.threads) as threads:
        segmented = segment_volume(
            scan.straightened.volume if scan.straightened else scan.volume, manifest, session,
            max_voxels=max_voxels, clock=clock, progress=progress,
            batch=session.batch or engine.batch, smaller_batch=session.batch is None, ahead=session.on_gpu,
            on_device=OnDevice(session) if session.sums_on_device else None,
            threads=threads, memory=memory,
        )  # fmt: skip
        progress("report", 0.0)
        with clock.stage("report"):
            mask = segmented.mask
            if scan.straightened:
                mask = scan.straightened.labels_of_slices(mask, scan.volume.shape)
            regions = find_regions(mask, [label.value for label in manifest.labels])
            labels = measure_labels(mask, scan.volume, manifest, regions, threads=threads)
        progress("preview", 0.0)
        with clock.stage("preview"):
            modality = scan.modality or manifest.modality
            preview = draw_preview(scan.volume, mask, labels, regions, modality=modality)
        progress("write", 0.0)
        with clock.stage("write"):
            write_mask(target / MASK_FILE, mask, scan.grid)
            (target / PREVIEW_FILE).write_bytes(preview)
            identity = Identity(job_id or uuid4(), sha256)
            written = _write_segmentations(target, mask, scan, manifest, formats, identity=identity, memory=memory)
    report = Report(
        service_version=version("inference-service"),
        onnxruntime_version=RUNTIME_VERSION,
        input=_input_report(scan, sha256, segmented.kept),
        options=OptionsReport(
            series=wishes.series, tolerate=list(wishes.tolerate), modality_check=wishes.modality_check
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
            *_warnings(scan, model, engine, session),
            *segmented.notes,
            *dict.fromkeys(warning for each in written for warning in each.warnings),
        ],
    )
    report.write(target / REPORT_FILE)
    return report


def result_files(formats: Sequence[Format] = get_args(Format)) -> dict[str, str]:
    """The files of a result, by the names that a job's row has for them; of all formats unless some are given.

    >>> result_files(["dicom-seg"])
    {'mask': 'mask.nii.gz', 'report': 'report.json', 'preview': 'preview.png', 'dicom-seg': 'segmentation.dcm'}
    """
    segmentations: dict[str, str] = {form: name for form, (name, _) in _SEGMENTATIONS.items() if form in formats}
    return {"mask": MASK_FILE, "report": REPORT_FILE, "preview": PREVIEW_FILE, **segmentations}


def _check_formats(formats: Sequence[Format], scan: Scan, manifest: Manifest) -> None:
    wanted = [form for form in _SEGMENTATIONS if form in formats]
    if wanted and scan.kind != "dicom":
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
    formats: Sequence[Format],
    *,
    identity: Identity,
    memory: Memory,
) -> list[Written]:
    wanted = [_SEGMENTATIONS[form] for form in _SEGMENTATIONS if form in formats]
    if not wanted:
        return []
    if scan.evened:
        memory.require(mask.nbytes)
        layout = scan.slices[0].image.layout
        mask = scan.evened.labels_of_slices(mask, (layout.columns, layout.rows))
    return [
        write_segmentation(
            target / name,
            mask,
            scan.slices,
            manifest,
            kind=kind,
            even=scan.evened is None,
            identity=identity,
            require=memory.require,
        )
        for name, kind in wanted
    ]


def input_sha256(source: Path) -> str:
    """Names an input by its content: of a file its sha256, of a folder that of its files' sorted ones."""
    if source.is_dir():
        files = (path for path in source.rglob("*") if path.is_file() and not path.is_symlink())
        each = sorted(input_sha256(path) for path in files)
        return hashlib.sha256("\n".join(each).encode()).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def numeric_threads(count: int) -> Iterator[Threads]:
    """The threads of one job, and none but them: BLAS has its own, which would fight with these for the cores."""
    with threadpool_limits(1, user_api="blas"), Threads(count) as threads:
        yield threads


@dataclass(frozen=True)
class Segmented:
    """What becomes of a volume.

    Attributes:
        mask: On the volume's own grid, with the least dtype that holds the labels.
        windows: How many windows were run.
        kept: The part of the volume that was looked at.
        notes: What had to be done differently than usual, in words.
    """

    mask: NDArray[np.unsignedinteger]
    windows: int
    kept: Box
    notes: list[str]


def segment_volume(
    volume: Volume,
    manifest: Manifest,
    network: Network,
    *,
    max_voxels: int,
    clock: StageClock,
    progress: Progress = lambda stage, share: None,
    batch: int = 1,
    smaller_batch: bool = True,
    ahead: bool = False,
    on_device: DeviceNetwork | None = None,
    threads: Threads = ALONE,
    memory: Memory | None = None,
) -> Segmented:
    """Segments one volume in memory.

    Args:
        volume: The scan; its values are finite.
        manifest: How the network is fed and what its outputs stand for.
        network: The loaded model.
        max_voxels: Scans that become larger on the model's grid are refused.
        clock: Takes the seconds of each stage.
        progress: Told of every stage and window.
        batch: Windows that the network is given at a time.
        smaller_batch: Whether it takes fewer too.
        ahead: Whether it runs while the results before are added up.
        on_device: The same network, where its logits are added up where it runs.
        threads: For all that is not the network.
        memory: What there is of it; None asks the machine.

    Raises:
        InputTooLarge: The model's grid would be larger than that.
        OutOfMemory: The job needs more memory than there is.
    """
    memory = memory or Memory()
    values = [label.value for label in manifest.labels]
    dtype = np.uint8 if max(values) <= np.iinfo(np.uint8).max else np.uint16
    mask = np.zeros(volume.shape, dtype=dtype, order="F")
    progress("preprocess", 0.0)
    with clock.stage("preprocess"):
        kept = crop_box(volume, manifest.crop)
        prepared = prepare(
            volume.cropped(kept), manifest, max_voxels=max_voxels, threads=threads,
            # The mask's zeros take no memory before they are written.
            require=lambda size_bytes: memory.require(size_bytes + mask.nbytes),
        )  # fmt: skip
    plan = plan_windows(prepared.image.shape, manifest.window, manifest.overlap, manifest.placement)
    planes = stream_logits(
        prepared.image, network, manifest, plan,
        batch=batch, smaller_batch=smaller_batch, ahead=ahead, on_device=on_device, threads=threads,
        hold=lambda shape: memory.hold(shape, besides=mask.nbytes + _planes_bytes(shape, plan.axis)),
        waiting=lambda: clock.stage("network"),
        on_window=lambda done: progress("windows", done / plan.count),
    )  # fmt: skip
    with clock.stage("map"):
        map_planes(
            clock.each("windows", planes),
            depth=prepared.image.shape[plan.axis],
            decide=partial(labels_from_logits, activation=manifest.activation, values=values, dtype=dtype),
            target=np.moveaxis(prepared.reorientation.apply(mask[kept]), plan.axis, 0),
            kinds=[prepared.logits_kinds[axis] for axis in plan.axes],
            threads=threads,
        )
    progress("postprocess", 0.0)
    with clock.stage("postprocess"):
        clean(mask, manifest.postprocessing, voxel_volume_ml=volume.voxel_volume_ml)
    return Segmented(mask, plan.count, kept, memory.notes)


def _planes_bytes(held: tuple[int, ...], axis: int) -> int:
    """What planes take on their way from the logits held, of shape (labels, i, j, k), to the scan's grid."""
    return 4 * prod(held) // held[axis + 1] * _PLANES_UNDER_WAY


def _warnings(scan: Scan, model: Model, engine: Engine, session: Session) -> list[str]:
    warnings = [f"the model: {warning}" for warning in session_warnings(model, engine, session)]
    warnings += [f"the scan: {warning}" for warning in scan.warnings]
    if scan.replaced_voxels:
        warnings.append(f"{scan.replaced_voxels} voxels were NaN or infinite and got the least finite value")
    return warnings


def _input_report(scan: Scan, sha256: str, kept: Box) -> InputReport:
    volume = scan.volume
    # The crop of a straightened scan is not one of its own axes.
    cropped = scan.straightened is None and any(
        side != slice(0, size) for side, size in zip(kept, volume.shape, strict=True)
    )
    return InputReport(
        kind=scan.kind,
        sha256=sha256,
        shape=volume.shape,
        spacing_mm=volume.spacing_mm,
        orientation=volume.orientation,
        affine=volume.affine.tolist(),
        modality=scan.modality or None,
        slices=len(scan.slices) or None,
        set_aside=dict(scan.set_aside),
        replaced_voxels=scan.replaced_voxels,
        cropped_to=[(side.start, side.stop) for side in kept] if cropped else None,
    )
