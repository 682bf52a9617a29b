"""Compares a model with the source's own predictor on a scan: labels, seconds and memory."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.manifest import Manifest
from inference_service.core.errors import BadRequest, InternalError
from inference_service.formats.nifti import read_nifti
from inference_service.formats.read_limits import ReadLimits
from inference_service.importers.isolation import Ended, Progress, run_task, wait_for
from inference_service.importers.sources import Reference

_UNLIMITED = 2**40


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
    scratch: Path,
    progress: Progress,
) -> Comparison:
    """Segments a scan with the source's own predictor and with this service.

    Args:
        reference: The source's own predictor.
        manifest: The model's manifest.
        models_path: The folder in which the model lies, as name/version.
        scans: The file of each channel.
        scratch: A folder for temporary files.
        progress: Called for each step.

    Raises:
        BadRequest: The number of files is not that of the channels.
        ServiceError: One of the two refuses the scan.
    """
    if len(scans) != len(manifest.channel_names):
        raise BadRequest(f"give --compare once for each channel, in this order: {', '.join(manifest.channel_names)}")
    written = scratch / "reference"
    written.mkdir()
    target = written / "labels.npy"
    task = {
        **reference.arguments,
        "predictor": reference.predictor,
        "scans": [str(path.resolve()) for path in scans],
        "target": str(target),
    }
    theirs = run_task(
        "predict",
        task,
        scratch,
        progress=lambda step, share: progress(f"source: {step}", share / 2),
        writes_to=[written] if reference.runs_code else None,
    )
    progress("this service", 0.5)
    ours, mask = _segment(manifest, models_path, scans, scratch)
    progress("compared", 1.0)
    return _compared(manifest, np.load(target), mask, scans[0].name, (theirs, ours))


def _segment(
    manifest: Manifest, models_path: Path, scans: Sequence[Path], scratch: Path
) -> tuple[Ended, NDArray[np.generic]]:
    """Runs the command `segment`, and returns its mask."""
    target = scratch / "own" / "mask.nii.gz"
    named = zip(manifest.channel_names, scans, strict=True)
    sources = [str(scans[0])] if len(scans) == 1 else [f"--channel={name}={path}" for name, path in named]
    chosen = ["--model", manifest.name, "--model-version", manifest.version, "--no-modality-check"]
    command = [sys.executable, "-P", "-m", "inference_service", "segment", *sources, str(target), *chosen]
    log = scratch / "own.txt"
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "MODELS_PATH": str(models_path)}
        )
        usage = wait_for(process)
    ended = Ended({}, time.monotonic() - start, usage.ru_maxrss * 1024)
    if process.returncode:
        raise BadRequest(f"this service does not segment the scan: {_last_line(log)}")
    return ended, read_nifti(target, ReadLimits(_UNLIMITED, _UNLIMITED)).volume.voxels


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


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
    dice = {
        label.name: _dice(theirs == label.value, ours == label.value)
        for label in manifest.labels
        if label.value and (np.any(theirs == label.value) or np.any(ours == label.value))
    }
    source, own = runs
    return Comparison(
        scan,
        float(np.mean(theirs == ours)),
        dice,
        {"source": round(source.seconds, 2), "this service": round(own.seconds, 2)},
        {"source": source.peak_bytes, "this service": own.peak_bytes},
        note,
    )


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float(2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second)))
