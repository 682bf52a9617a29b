"""The Celery settings that reliability rests on: each of them is a decision, and none may go unseen."""

from inference_service.queues import make_app
from inference_service.settings import Settings


def test_the_celery_application_is_set_up_as_decided() -> None:
    settings = Settings(time_limit_s=100, shutdown_grace_s=7)
    conf = make_app(settings).conf
    decided = {
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "task_create_missing_queues": False,
        "task_soft_time_limit": 100,
        "worker_soft_shutdown_timeout": 7,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
    }
    assert {name: conf[name] for name in decided} == decided
    assert {queue.name for queue in conf.task_queues} == {"priority", "overflow"}
    assert conf.task_time_limit > conf.task_soft_time_limit
    assert conf.broker_transport_options["visibility_timeout"] > conf.task_time_limit
    assert conf.broker_transport_options["queue_order_strategy"] == "priority"
