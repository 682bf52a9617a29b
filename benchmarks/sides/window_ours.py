"""The service's sliding window over a volume in memory."""

import time
from unittest.mock import patch

import numpy as np

from benchmarks.engine import check_precision, check_watched, task_execution, task_model
from benchmarks.measurement import Run, Task
from benchmarks.models import MAX_VOXELS, SPACING_MM
from benchmarks.watch import MemoryWatch, NetworkClock
from inference_service.core.progress import StageClock
from inference_service.core.threads import ThreadPool
from inference_service.engine.session import Session
from inference_service.engine.session_cache import load_model
from inference_service.imaging.geometry import Volume
from inference_service.segmentation.loaded_networks import loaded_networks
from inference_service.segmentation.resources import Resources, StageMonitor
from inference_service.segmentation.volume_segmentation import segment_volume
from inference_service.segmentation.windows.tiling import window_shape


def run(task: Task) -> Run:
    """Measures the side."""
    network = NetworkClock()
    memory = MemoryWatch()
    clock = StageClock()
    model = task_model(task)
    with memory.loading():
        loaded = load_model(model, task_execution(task))
    check_precision(task, loaded.precision)
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    volume = Volume(np.load(task.source), affine)
    (session,) = loaded.sessions.values()
    session.run(np.zeros((1, 1, *window_shape(volume.shape, model.manifest)), np.float32))
    with (
        ThreadPool(task.threads) as threads,
        patch.object(Session, "run", network.timed(Session.run)),
        patch.object(Session, "run_on_device", network.timed(Session.run_on_device)),
    ):
        start = time.perf_counter()
        segmentation = segment_volume(
            [volume],
            model.manifest,
            loaded_networks(loaded, 1),
            max_voxels=MAX_VOXELS,
            resources=Resources(threads, monitor=StageMonitor(clock)),
        )
        seconds = time.perf_counter() - start
    memory.finish()
    check_watched(memory, network)
    if task.labels:
        np.save(task.labels, segmentation.mask)
    return Run(seconds, network.seconds, network.runs, memory.peak_mb, memory.above_model_mb, dict(clock.seconds))
