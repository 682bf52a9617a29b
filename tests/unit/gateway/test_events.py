from collections.abc import Mapping
from typing import cast
from uuid import UUID, uuid4

import anyio
import pytest
from anyio.from_thread import run as run_in_loop

from inference_service.gateway import events
from inference_service.gateway.events import EventHub, JobEvent
from inference_service.jobs.database import Database
from inference_service.jobs.gateway.job_events import JobNews, JobProgress
from inference_service.jobs.schema import JobState

DONE = JobNews(JobProgress(JobState.SUCCEEDED, None, 1.0), {})
NO_DATABASE = cast(Database, None)


@pytest.mark.timeout(30)
def test_a_listener_that_leaves_during_a_look_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    leaver, follower = uuid4(), uuid4()
    told: list[JobEvent] = []
    gone = anyio.Event()

    async def scenario() -> None:
        hub = EventHub(NO_DATABASE)
        leaving = anyio.CancelScope()

        async def listen_and_leave() -> None:
            with leaving:
                async for _ in hub.events(leaver, after=0):
                    pass
            gone.set()

        async def leave() -> None:
            leaving.cancel()
            await gone.wait()

        def read_news(_database: Database, jobs: set[UUID], *, after: int) -> Mapping[UUID, JobNews]:
            run_in_loop(leave)
            return dict.fromkeys(jobs, DONE)

        monkeypatch.setattr(events, "read_news", read_news)
        async with anyio.create_task_group() as group:
            group.start_soon(listen_and_leave)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(hub.watch)
            told.extend([event async for event in hub.events(follower, after=0)])
            group.cancel_scope.cancel()

    anyio.run(scenario)
    assert [event.progress for event in told] == [DONE.progress]


@pytest.mark.timeout(30)
def test_a_stop_ends_all_streams_and_those_that_begin_after_it() -> None:
    async def scenario() -> None:
        hub = EventHub(NO_DATABASE)

        async def listen() -> None:
            assert [event async for event in hub.events(uuid4(), after=0)] == []

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            assert hub.listeners == 1
            hub.close()
        await listen()
        assert hub.listeners == 0

    anyio.run(scenario)
