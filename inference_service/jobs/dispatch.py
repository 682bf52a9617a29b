"""Putting recorded jobs on their queues, and noting in their rows that it was done."""

from collections.abc import Sequence
from functools import cache

from inference_service.core.settings import Settings
from inference_service.jobs.celery_app import OVERFLOW_QUEUE, App, RedisState, queue_for, send
from inference_service.jobs.database import Database, mapped_errors
from inference_service.jobs.job_store import UnsentJob, mark_dispatched
from inference_service.jobs.worker_registry import Role, has_live_worker


def dispatch(app: App, database: Database, jobs: Sequence[UnsentJob], redis: RedisState, *, settings: Settings) -> None:
    """Sends jobs to the queues that their priorities say. Sent twice, a job runs once all the same.

    Args:
        app: Speaks to Redis.
        database: Where their rows are, committed.
        jobs: What to send.
        redis: As seen before: should it restart meanwhile, the sweeper finds messages that went to a run that is over.
        settings: Say when an urgent job goes to the overflow queue.

    Raises:
        QueueUnavailable: Redis does not answer or refuses: the rows still say what is to be sent.
        DatabaseUnavailable: Something was sent, but its row does not say so: the sweeper sends it once more.
    """
    if not jobs:
        return
    depths = dict(redis.depths)
    cpu_is_alive = cache(lambda: has_live_worker(database, Role.CPU, within_s=settings.cpu_standby_s))
    with mapped_errors(), database.connect() as connection:
        for job in jobs:
            queue = OVERFLOW_QUEUE if job.on_cpu else queue_for(
                job.request.get("priority"), depths,
                priority_max_depth=settings.priority_max_depth, cpu_is_alive=cpu_is_alive,
            )  # fmt: skip
            send(app, job.id, job.request, queue=queue)
            depths[queue] += 1
            with connection.begin():
                mark_dispatched(connection, job, queue=queue, redis_run_id=redis.run_id)
