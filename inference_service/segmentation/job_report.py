"""The parts of `report.json` that describe a job's input, options and model."""

from collections.abc import Sequence
from pathlib import Path

from inference_service.contract.input_options import InputOptions
from inference_service.contract.report import (
    ChannelOptionsReport,
    ChannelReport,
    CropModelReport,
    InputReport,
    ModelReport,
    OptionsReport,
)
from inference_service.core.files import files_sha256, input_sha256
from inference_service.engine.model_registry import Model
from inference_service.formats.channel_reader import ChannelScan, Study
from inference_service.imaging.geometry import Box
from inference_service.segmentation.crop_models import CropModels


def input_report(study: Study, sha256: str, crop: Box) -> InputReport:
    """Describes an input as it was read.

    Args:
        study: The scan of each channel.
        sha256: Hash of the whole input.
        crop: The part of the first channel's volume that was segmented.
    """
    scan = study.first
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
        channels=[
            _channel_report(channel, sha256 if len(study.channels) == 1 else _sha256(channel.sources))
            for channel in study.channels
        ],
    )


def _sha256(sources: Sequence[Path]) -> str:
    return input_sha256(sources[0]) if len(sources) == 1 else files_sha256(sources)


def _channel_report(channel: ChannelScan, sha256: str) -> ChannelReport:
    return ChannelReport(
        name=channel.name,
        kind=channel.input_format,
        sha256=sha256,
        shape=channel.shape,
        spacing_mm=channel.spacing_mm,
        modality=channel.modality or None,
        resampled=channel.resampled,
    )


def options_report(options: InputOptions) -> OptionsReport:
    """Copies the request's options for its input into the report."""
    return OptionsReport(
        series=options.series,
        tolerate=list(options.tolerate),
        modality_check=options.modality_check,
        select=dict(options.select),
        channels={
            name: ChannelOptionsReport(series=channel.series, select=dict(channel.select))
            for name, channel in options.channels.items()
        },
    )


def model_report(model: Model, crop_models: CropModels) -> ModelReport:
    """Identifies the model that ran, and those to whose labels it cropped the scan."""
    return ModelReport(
        name=model.manifest.name,
        version=model.manifest.version,
        sha256=model.manifest.networks_sha256,
        manifest_sha256=model.manifest_sha256,
        crop_models=[
            CropModelReport(
                name=each.manifest.name,
                version=each.manifest.version,
                sha256=each.manifest.networks_sha256,
                manifest_sha256=each.manifest_sha256,
            )
            for each in crop_models.models
        ],
    )
