"""Writes the inputs of a case's sides: networks, models, volumes and scans."""

import numpy as np
from scipy import ndimage

from benchmarks.cases import Case, Subject
from benchmarks.imports import import_source
from benchmarks.measurement import Shape
from benchmarks.models import write_model, write_parts
from benchmarks.networks import NETWORKS, save, save_half
from benchmarks.nnunet_folder import write_nnunet_folder
from benchmarks.workspace import Workspace
from inference_service.embedded.phantom import chest_phantom
from inference_service.formats.nifti import write_volume

_SEED = 1
_SMOOTHING_VOXELS = 2.0
# Spacing of the phantoms; the model's grid is coarser.
_SCAN_SPACING_MM = (0.7, 0.7, 1.0)


def write_inputs(case: Case, workspace: Workspace) -> None:
    """Writes the inputs of a case that do not exist yet."""
    for subject in case.subjects:
        onnx = workspace.onnx(subject.network)
        weights = workspace.weights(subject.network)
        if not onnx.exists():
            save(NETWORKS[subject.network], weights=weights, onnx=onnx)
        if not workspace.source(subject).exists():
            _write_source(subject, workspace)
        if subject.imported:
            import_source(subject.imported, NETWORKS[subject.network], weights, workspace)
    if case.name == "parts":
        network = case.subjects[0].network
        write_parts(workspace.model(case.name), NETWORKS[network], workspace.onnx(network))
    elif not case.subjects[0].imported:
        _write_models(case, workspace)


def _write_models(case: Case, workspace: Workspace) -> None:
    """Writes the models of a case, which all its subjects share."""
    programs = {side.program for side in case.sides}
    network = case.subjects[0].network
    if programs & {"window_ours", "job_ours", "queue_ours"}:
        write_model(workspace.model(case.name), case.name, NETWORKS[network], workspace.onnx(network))
    if any(side.precision == "fp16" and side.provider is not None for side in case.sides):
        half = workspace.onnx(network, "fp16")
        if not half.exists():
            save_half(workspace.onnx(network), half)
        write_model(workspace.model(case.name, "fp16"), case.name, NETWORKS[network], half)
    if "job_nnunet" in programs:
        write_nnunet_folder(workspace.nnunet, NETWORKS[network], workspace.weights(network))


def _write_source(subject: Subject, workspace: Workspace) -> None:
    path = workspace.source(subject)
    if subject.source == "scan":
        write_volume(path, chest_phantom(subject.shape, _SCAN_SPACING_MM))
        return
    noise = np.random.default_rng(_SEED).standard_normal(subject.shape, np.float32)
    if subject.source == "volume":
        noise = _smoothed(noise, subject.shape)
    np.save(path, noise)


def _smoothed(noise: np.ndarray[Shape, np.dtype[np.float32]], shape: Shape) -> np.ndarray[Shape, np.dtype[np.float32]]:
    smooth = np.empty(shape, np.float32)
    ndimage.gaussian_filter(noise, _SMOOTHING_VOXELS, output=smooth)
    smooth /= smooth.std()
    return smooth
