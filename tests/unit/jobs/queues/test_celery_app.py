"""The Celery settings that reliability depends on."""

from kombu.utils.scheduling import cycle_by_name

from inference_service.core.settings import Settings
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE, PRIORITY_QUEUE


def test_the_celery_application_has_the_settings_for_reliability() -> None:
    settings = Settings(time_limit_s=100)
    conf = make_app(settings).conf
    expected = {
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
        "worker_enable_remote_control": False,
    }
    assert {name: conf[name] for name in expected} == expected
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
