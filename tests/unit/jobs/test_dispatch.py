from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast
from unittest.mock import Mock
from uuid import UUID, uuid4

import pytest

from inference_service.core.errors import QueueUnavailable
from inference_service.core.settings import Settings
from inference_service.jobs import dispatch as dispatch_module
from inference_service.jobs.database import Database
from inference_service.jobs.dispatch import dispatch, queue_for
from inference_service.jobs.job_store import UnsentJob
from inference_service.jobs.queues.celery_app import App
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE, PRIORITY_QUEUE
from inference_service.jobs.queues.redis_state import RedisState

EMPTY = RedisState("run", {PRIORITY_QUEUE: 0, OVERFLOW_QUEUE: 0})
SETTINGS = Settings(priority_max_depth=2)


class Servers:
    """Stands in for Redis and Postgres, and records the messages and rows in order."""

    def __init__(self, *, has_cpu_worker: bool = True, accepts: int = 99) -> None:
        self.has_cpu_worker = has_cpu_worker
        self.accepts = accepts
        self.log: list[tuple[str, UUID, str]] = []
        self.questions = 0

    def send(self, app: App, job_id: UUID, request: dict[str, Any], *, queue: str) -> None:
        if len(self.log) // 2 == self.accepts:
            raise QueueUnavailable("Redis does not answer")
        self.log.append(("sent", job_id, queue))

    def mark_dispatched(self, connection: object, job: UnsentJob, *, queue: str, redis_run_id: str) -> None:
        assert redis_run_id == EMPTY.run_id
        self.log.append(("recorded", job.id, queue))

    def has_live_worker(self, *_: object, **__: object) -> bool:
        self.questions += 1
        return self.has_cpu_worker

    @contextmanager
    def connection(self) -> Iterator[Mock]:
        yield Mock(begin=nullcontext)

    def dispatch(self, jobs: list[UnsentJob], *, limit_s: float = 60) -> int:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("send", "mark_dispatched", "has_live_worker"):
                patch.setattr(dispatch_module, name, getattr(self, name))
            return dispatch(cast("App", None), cast("Database", self), jobs, EMPTY, settings=SETTINGS, limit_s=limit_s)

    @property
    def queues(self) -> list[str]:
        return [queue for event, _, queue in self.log if event == "sent"]


def unsent(priority: str = "urgent", *, on_cpu: bool = False) -> UnsentJob:
    return UnsentJob(uuid4(), {"priority": priority}, 0, on_cpu)


def test_every_message_is_recorded_after_it_was_sent() -> None:
    servers = Servers()
    jobs = [unsent("routine"), unsent("urgent")]
    servers.dispatch(jobs)
    assert servers.log == [
        ("sent", jobs[0].id, OVERFLOW_QUEUE),
        ("recorded", jobs[0].id, OVERFLOW_QUEUE),
        ("sent", jobs[1].id, PRIORITY_QUEUE),
        ("recorded", jobs[1].id, PRIORITY_QUEUE),
    ]


def test_jobs_that_are_left_after_the_limit_stay_unsent() -> None:
    servers = Servers()
    assert servers.dispatch([unsent()], limit_s=0) == 0
    assert servers.log == []
    assert servers.dispatch([unsent(), unsent()], limit_s=60) == 2
    assert servers.dispatch([]) == 0


def test_a_job_that_failed_on_a_gpu_goes_to_the_cpu_workers() -> None:
    servers = Servers()
    servers.dispatch([unsent("urgent", on_cpu=True)])
    assert servers.queues == [OVERFLOW_QUEUE]


@pytest.mark.parametrize(
    ("has_cpu_worker", "queues"),
    [
        (True, [PRIORITY_QUEUE, PRIORITY_QUEUE, OVERFLOW_QUEUE, OVERFLOW_QUEUE, PRIORITY_QUEUE]),
        (False, [PRIORITY_QUEUE] * 5),
    ],
)
def test_depths_grow_with_each_message_and_workers_are_looked_up_once(has_cpu_worker: bool, queues: list[str]) -> None:
    servers = Servers(has_cpu_worker=has_cpu_worker)
    servers.dispatch([unsent() for _ in range(5)])
    assert servers.queues == queues
    assert servers.questions == 1


def test_jobs_after_a_failure_of_the_queue_stay_unsent() -> None:
    servers = Servers(accepts=1)
    jobs = [unsent(), unsent(), unsent()]
    with pytest.raises(QueueUnavailable):
        servers.dispatch(jobs)
    assert servers.log == [("sent", jobs[0].id, PRIORITY_QUEUE), ("recorded", jobs[0].id, PRIORITY_QUEUE)]


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
