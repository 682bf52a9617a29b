"""The parts of `report.json` that describe a job's input, options and model."""

from inference_service.contract.input_options import InputOptions
from inference_service.contract.report import InputReport, ModelReport, OptionsReport
from inference_service.engine.model_registry import Model
from inference_service.formats.scan_reader import Scan
from inference_service.imaging.geometry import Box


def input_report(scan: Scan, sha256: str, crop: Box) -> InputReport:
    """Describes a scan as it was read.

    Args:
        scan: The scan.
        sha256: Hash of the file, or for a folder of its files' hashes.
        crop: The part of the volume that was segmented.
    """
    volume = scan.volume
    # The crop of an aligned scan is a box of the aligned grid, not of the scan's.
    cropped = scan.aligned is None and any(
        side != slice(0, size) for side, size in zip(crop, volume.shape, strict=True)
    )
    return InputReport(
        kind=scan.input_format,
        sha256=sha256,
        shape=volume.shape,
        spacing_mm=volume.spacing_mm,
        orientation=volume.orientation,
        affine=volume.affine.tolist(),
        modality=scan.modality or None,
        value_type=scan.value_type.term if scan.value_type else None,
        slices=len(scan.slices) or None,
        set_aside=dict(scan.set_aside),
        replaced_voxels=scan.replaced_voxels,
        cropped_to=[(side.start, side.stop) for side in crop] if cropped else None,
    )


def options_report(options: InputOptions) -> OptionsReport:
    """Copies the request's options for its input into the report."""
    return OptionsReport(
        series=options.series,
        tolerate=list(options.tolerate),
        modality_check=options.modality_check,
        select=dict(options.select),
    )


def model_report(model: Model) -> ModelReport:
    """Identifies the model that ran."""
    manifest = model.manifest
    return ModelReport(
        name=manifest.name,
        version=manifest.version,
        sha256=manifest.networks_sha256,
        manifest_sha256=model.manifest_sha256,
    )
