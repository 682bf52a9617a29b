import pytest

from inference_service.jobs.celery_app import OVERFLOW_QUEUE, PRIORITY_QUEUE
from inference_service.jobs.dispatch import queue_for


@pytest.mark.parametrize(
    ("priority", "urgent", "routine", "most", "cpu", "queue"),
    [
        ("urgent", 0, 0, 3, True, PRIORITY_QUEUE),
        ("urgent", 2, 0, 3, True, PRIORITY_QUEUE),
        ("urgent", 3, 0, 3, True, OVERFLOW_QUEUE),
        ("urgent", 3, 0, 3, False, PRIORITY_QUEUE),
        ("urgent", 3, 3, 3, True, PRIORITY_QUEUE),
        ("urgent", 99, 0, None, True, PRIORITY_QUEUE),
        ("routine", 0, 99, 3, False, OVERFLOW_QUEUE),
        (None, 0, 0, 3, False, OVERFLOW_QUEUE),
    ],
)
def test_an_urgent_job_spills_to_a_shorter_overflow_queue(
    priority: str | None, urgent: int, routine: int, most: int | None, cpu: bool, queue: str
) -> None:
    depths = {PRIORITY_QUEUE: urgent, OVERFLOW_QUEUE: routine}
    assert queue_for(priority, depths, priority_max_depth=most, has_cpu_worker=lambda: cpu) == queue
