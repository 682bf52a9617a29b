"""Compares a model with the source's own predictor on a scan: labels, seconds and memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.manifest import Manifest
from inference_service.core.errors import BadRequest, InternalError
from inference_service.formats.nifti import read_nifti
from inference_service.formats.read_limits import ReadLimits
from inference_service.importers.isolation import Ended, Isolation, Progress
from inference_service.importers.sources import Reference
from inference_service.segmentation.model_checks import dice

_UNLIMITED = 2**40
_LABELS = "labels.npy"
_SHARED_MEMORY = Path("/dev/shm")
# The part of the time that the source's predictor is expected to take.
_SHARE = 0.75


@dataclass(frozen=True)
class Comparison:
    """The comparison of two masks of one scan.

    Attributes:
        scan: Name of the scan.
        agreement: Share of the voxels with equal labels.
        dice: Dice coefficient for each label that occurs in one of the masks, by name.
        seconds: Of the source's predictor and of this service, for the whole job.
        peak_bytes: The most memory of each.
        note: What the shares leave out; empty: nothing.
    """

    scan: str
    agreement: float
    dice: Mapping[str, float]
    seconds: Mapping[str, float]
    peak_bytes: Mapping[str, int]
    note: str = ""


def compare(
    reference: Reference,
    manifest: Manifest,
    models_path: Path,
    scans: Sequence[Path],
    isolation: Isolation,
    progress: Progress,
) -> Comparison:
    """Segments a scan with the source's own predictor and with this service.

    Args:
        reference: The source's own predictor.
        manifest: The model's manifest.
        models_path: The folder in which the model lies, as name/version.
        scans: The file of each channel.
        isolation: Where both run.
        progress: Called for each step.

    Raises:
        BadRequest: The number of files is not that of the channels.
        ServiceError: One of the two refuses the scan. See `Isolation.run` too.
    """
    if len(scans) != len(manifest.channel_names):
        raise BadRequest(f"give --compare once for each channel, in this order: {', '.join(manifest.channel_names)}")
    paths = [str(path.resolve()) for path in scans]
    written, target = isolation.scratch / "reference", isolation.scratch / "own" / "mask.nii.gz"
    written.mkdir()
    progress("source's predictor: starting", 0.0)
    theirs = isolation.run(
        "predict",
        {
            **reference.arguments,
            "predictor": reference.predictor,
            "scans": paths,
            "target": str(written / _LABELS),
        },
        progress=lambda step, share: progress(f"source's predictor: {step}", share * _SHARE),
        writes_to=[written, *([_SHARED_MEMORY] if reference.shares_memory else [])],
    )
    progress("this service: starting", _SHARE)
    ours = isolation.run_unlimited(
        "segment",
        {
            "name": manifest.name,
            "version": manifest.version,
            "scans": dict(zip(manifest.channel_names, paths, strict=True)),
            "target": str(target),
        },
        {"MODELS_PATH": str(models_path.resolve())},
        progress=lambda step, share: progress(f"this service: {step}", _SHARE + share * (1 - _SHARE)),
    )
    progress("comparing the masks", 1.0)
    # The file of the other process may say any shape: none is allocated.
    labels = np.load(written / _LABELS, mmap_mode="r")
    mask = read_nifti(target, ReadLimits(_UNLIMITED, _UNLIMITED)).volume.voxels
    return _compared(manifest, labels, mask, scans[0].name, (theirs, ours))


def _compared(
    manifest: Manifest,
    theirs: NDArray[np.generic],
    ours: NDArray[np.generic],
    scan: str,
    runs: tuple[Ended, Ended],
) -> Comparison:
    if theirs.shape != ours.shape:
        raise InternalError(f"the source's mask has the shape {theirs.shape}, and this service's {ours.shape}")
    whole = np.equal(theirs, np.round(theirs.astype(np.float64)))
    note = "" if whole.all() else f"left out: {1 - whole.mean():.4%} of the voxels, with values between labels"
    theirs, ours = theirs[whole], ours[whole]
    by_label = {
        label.name: dice(theirs == label.value, ours == label.value)
        for label in manifest.labels
        if label.value and (np.any(theirs == label.value) or np.any(ours == label.value))
    }
    source, own = runs
    return Comparison(
        scan,
        float(np.mean(theirs == ours)),
        by_label,
        {"source": round(source.seconds, 2), "this service": round(own.seconds, 2)},
        {"source": source.peak_bytes, "this service": own.peak_bytes},
        note,
    )
