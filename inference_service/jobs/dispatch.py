"""Chooses the queues of recorded jobs, sends their messages, and records in the rows that they were sent."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from inference_service.contract.task_message import Priority
from inference_service.core.settings import Settings
from inference_service.jobs.database import Database
from inference_service.jobs.job_store import UnsentJob, mark_dispatched
from inference_service.jobs.queues.celery_app import App, send
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE, PRIORITY_QUEUE, depth_of, list_of
from inference_service.jobs.queues.redis_state import RedisState
from inference_service.jobs.workers.worker_registry import Role, has_live_worker


def dispatch(
    app: App,
    database: Database,
    jobs: Sequence[UnsentJob],
    redis: RedisState,
    *,
    settings: Settings,
    limit_s: float = math.inf,
) -> int:
    """Sends jobs to the queues of their priorities. A job that is sent twice still runs once.

    Args:
        app: The Celery application.
        database: The database with the jobs' committed rows.
        jobs: The jobs to send.
        redis: The state of Redis, fetched before: its run and the depths of the queues.
        settings: Give the depth from which an urgent job goes to the overflow queue, and the time after which a CPU
            worker without a heartbeat counts as dead.
        limit_s: After this time the remaining jobs are left out.

    Returns:
        The number of jobs that were sent.

    Raises:
        QueueUnavailable: Redis does not answer or refuses. The remaining rows still say that they are to be sent.
        DatabaseUnavailable: A message was sent but not recorded, so a sweep sends the job once more.
    """
    if not jobs:
        return 0
    deadline = time.monotonic() + limit_s
    depths = dict(redis.depths)
    has_cpu_worker = cache(lambda: has_live_worker(database, Role.CPU, within_s=settings.cpu_standby_s))
    with database.connection() as connection:
        for sent, job in enumerate(jobs):
            if time.monotonic() >= deadline:
                return sent
            queue = OVERFLOW_QUEUE
            if not job.on_cpu:
                queue = queue_for(
                    job.request.get("priority"),
                    depths,
                    priority_max_depth=settings.priority_max_depth,
                    has_cpu_worker=has_cpu_worker,
                )
            # No worker would take a message of a tenant that is not in TENANTS.
            if (of_tenant := list_of(queue, job.tenant)) in depths:
                queue = of_tenant
            send(app, job.id, job.request, queue=queue)
            depths[queue] += 1
            with connection.begin():
                mark_dispatched(connection, job, queue=queue, redis_run_id=redis.run_id)
    return len(jobs)


def queue_for(
    priority: object, depths: Mapping[str, int], *, priority_max_depth: int | None, has_cpu_worker: Callable[[], bool]
) -> str:
    """Chooses the queue of a job's message.

    Args:
        priority: The job's priority. Every value but "urgent" counts as routine.
        depths: Number of messages that wait in each list.
        priority_max_depth: From this depth of the priority queue on, an urgent job spills to the overflow queue, if
            that is shorter. None never spills.
        has_cpu_worker: Returns True if a CPU worker consumes the overflow queue. Called only for an urgent job that
            would spill.
    """
    if priority != Priority.URGENT:
        return OVERFLOW_QUEUE
    urgent, routine = (depth_of(depths, queue) for queue in (PRIORITY_QUEUE, OVERFLOW_QUEUE))
    full = priority_max_depth is not None and urgent >= priority_max_depth
    spills = full and routine < urgent and has_cpu_worker()
    return OVERFLOW_QUEUE if spills else PRIORITY_QUEUE
