"""The resources of one job, and the monitor of its stages."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from threadpoolctl import threadpool_limits

from inference_service.core.memory_budget import MemoryBudget
from inference_service.core.progress import Progress, Stage, StageClock
from inference_service.core.threads import SINGLE_THREAD, ThreadPool


@dataclass(frozen=True)
class StageMonitor:
    """Follows the stages of one job.

    Attributes:
        clock: Measures the seconds of each stage.
        progress: Called with the stage and the finished share of the stage. An exception that it raises ends the job.
    """

    clock: StageClock = field(default_factory=StageClock)
    progress: Progress = lambda stage, share: None

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Reports the beginning of a stage, and measures the stage until the end of the block."""
        self.progress(name, 0.0)
        with self.clock.stage(name):
            yield


@dataclass(frozen=True)
class Resources:
    """The threads and the memory of one job, and the monitor of its stages.

    Attributes:
        threads: Share all work but the network's.
        memory: The memory that the job may take.
        monitor: Follows the job's stages.
    """

    threads: ThreadPool = SINGLE_THREAD
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    monitor: StageMonitor = field(default_factory=StageMonitor)


@contextmanager
def job_threads(count: int) -> Iterator[ThreadPool]:
    """Starts the threads of one job, and restricts BLAS to one thread, as further ones would compete with them."""
    with threadpool_limits(1, user_api="blas"), ThreadPool(count) as threads:
        yield threads
