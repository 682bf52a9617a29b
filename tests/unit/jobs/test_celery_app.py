"""The Celery settings that reliability depends on: a change to one of them is a decision."""

import pytest
from kombu.utils.scheduling import cycle_by_name

from inference_service.core.settings import Settings
from inference_service.jobs.celery_app import OVERFLOW_QUEUE, PRIORITY_QUEUE, make_app, queue_for


def test_the_celery_application_has_the_decided_settings() -> None:
    settings = Settings(time_limit_s=100)
    conf = make_app(settings).conf
    decided = {
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "task_create_missing_queues": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
    }
    assert {name: conf[name] for name in decided} == decided
    assert {queue.name for queue in conf.task_queues} == {"priority", "overflow"}
    assert conf.task_time_limit > settings.time_limit_s
    # Shorter than many jobs, whose messages are then delivered again and dropped.
    assert conf.broker_transport_options["visibility_timeout"] == 300
    assert make_app(Settings(visibility_timeout_s=9)).conf.broker_transport_options["visibility_timeout"] == 9


def test_the_priority_queue_is_drained_first() -> None:
    strategy = make_app(Settings()).conf.broker_transport_options["queue_order_strategy"]
    cycle = cycle_by_name(strategy)()
    cycle.update([OVERFLOW_QUEUE, PRIORITY_QUEUE])
    for _ in range(2):
        assert list(cycle.consume(2)) == [PRIORITY_QUEUE, OVERFLOW_QUEUE]
        cycle.rotate(PRIORITY_QUEUE)


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
