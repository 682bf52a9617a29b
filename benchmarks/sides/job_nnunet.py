"""A whole job in nnU-Net's own predictor, in one process, which is its fastest way for a single scan.

`predict_from_files` starts processes for preprocessing and export, which pays from the second scan on.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from benchmarks.labels import copy_labels
from benchmarks.measurement import Run, Task
from benchmarks.nnunet_folder import CHECKPOINT
from benchmarks.watch import MemoryWatch, NetworkClock
from benchmarks.workspace import Workspace
from inference_service.core.progress import Stage, StageClock

P = ParamSpec("P")
R = TypeVar("R")

# nnU-Net's functions, and the corresponding stages of the service's engine. Resampling and argmax are its stage "map".
_STAGES: tuple[tuple[object, str, Stage], ...] = (
    (SimpleITKIO, "read_images", "read"),
    (DefaultPreprocessor, "run_case", "preprocess"),
    (nnUNetPredictor, "initialize_from_trained_model_folder", "model_load"),
    (nnUNetPredictor, "predict_logits_from_preprocessed_data", "windows"),
    (predict_from_raw_data, "export_prediction_from_logits", "map"),
    (SimpleITKIO, "write_seg", "write"),
)
_FORWARD = "_internal_maybe_mirror_and_predict"


def run(task: Task) -> Run:
    """Measures the side."""
    torch.set_num_threads(task.threads)
    network = NetworkClock()
    memory = MemoryWatch()
    clock = StageClock()
    with TemporaryDirectory(dir=task.workspace) as target, ExitStack() as patches:
        for owner, name, stage in _STAGES:
            patches.enter_context(patch.object(owner, name, _counted(getattr(owner, name), stage, clock)))
        patches.enter_context(
            patch.object(nnUNetPredictor, _FORWARD, network.timed(getattr(nnUNetPredictor, _FORWARD)))
        )
        mask = Path(target) / "mask"
        start = time.perf_counter()
        predictor = nnUNetPredictor(
            use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
        )
        with memory.loading():
            predictor.initialize_from_trained_model_folder(str(Workspace(task.workspace).nnunet), (0,), CHECKPOINT)
        predictor.predict_from_files_sequential([[str(task.source)]], [str(mask)])
        seconds = time.perf_counter() - start
        memory.finish()
        if task.labels:
            copy_labels(mask.with_suffix(".nii.gz"), task.labels)
    return Run(seconds, network.seconds, network.runs, memory.peak_mb, memory.above_model_mb, dict(clock.seconds))


def _counted(function: Callable[P, R], stage: Stage, clock: StageClock) -> Callable[P, R]:
    def counting(*args: P.args, **kwargs: P.kwargs) -> R:
        with clock.stage(stage):
            return function(*args, **kwargs)

    return counting
