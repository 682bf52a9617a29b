"""News of jobs for many listeners, by one look at Postgres a second for all of them together."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn
from uuid import UUID

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from inference_service.core.errors import DatabaseUnavailable
from inference_service.jobs.database import Database
from inference_service.jobs.gateway.job_events import JobNews, JobProgress, read_news
from inference_service.jobs.job_store import Transition
from inference_service.jobs.schema import FINAL_STATES

logger = logging.getLogger(__name__)

_PERIOD_S = 1.0
_PERMISSION_PERIOD_S = 60.0
# A listener that is slower than this loses progress, but no transition.
_QUEUED_EVENTS = 32


@dataclass(frozen=True)
class JobEvent:
    """One event of a job: a transition with its id, or else its progress."""

    progress: JobProgress | None = None
    transition: Transition | None = None
    transition_id: int | None = None

    @property
    def is_last(self) -> bool:
        """True if the job is finished; the transitions precede its progress."""
        return self.progress is not None and self.progress.state in FINAL_STATES


@dataclass(eq=False)
class _Listener:
    job_id: UUID
    seen: int
    sender: MemoryObjectSendStream[JobEvent]
    progress: JobProgress | None = field(default=None, init=False)

    def tell(self, news: JobNews) -> None:
        """Passes on what the listener has not seen. What does not fit now is told at the next look."""
        try:
            for transition_id, transition in news.transitions.items():
                if transition_id > self.seen:
                    self.sender.send_nowait(JobEvent(transition=transition, transition_id=transition_id))
                    self.seen = transition_id
            if news.progress != self.progress:
                self.sender.send_nowait(JobEvent(progress=news.progress))
                self.progress = news.progress
        except (anyio.WouldBlock, anyio.ClosedResourceError):
            # The second: the listener has left since this look began.
            return


async def _received(receiver: MemoryObjectReceiveStream[JobEvent], *, until: float) -> JobEvent | None:
    """The next event; None if there is none until a time."""
    with anyio.move_on_after(max(0.0, until - anyio.current_time())):
        return await receiver.receive()
    return None


class EventHub:
    """Tells listeners what happens to their jobs. One task runs `watch`; listeners come and go.

    Args:
        database: The jobs' database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listeners: set[_Listener] = set()
        self._awaited = anyio.Event()
        self._closed = False

    @property
    def listeners(self) -> int:
        """The number of listeners."""
        return len(self._listeners)

    async def watch(self) -> NoReturn:
        """Looks at the jobs of all listeners once a second, as long as there are any."""
        while True:
            await self._awaited.wait()
            try:
                await self._look()
            except DatabaseUnavailable as error:
                logger.warning("no news of jobs: %s", error)
            if not self._listeners:
                self._awaited = anyio.Event()
            await anyio.sleep(_PERIOD_S)

    async def _look(self) -> None:
        listeners = list(self._listeners)
        jobs: Collection[UUID] = {each.job_id for each in listeners}
        after = min((each.seen for each in listeners), default=0)
        news = await anyio.to_thread.run_sync(partial(read_news, self._database, jobs, after=after))
        for listener in listeners:
            if listener.job_id in news:
                listener.tell(news[listener.job_id])
            else:
                listener.sender.close()

    async def events(
        self, job_id: UUID, *, after: int, permitted: Callable[[], Awaitable[bool]] | None = None
    ) -> AsyncIterator[JobEvent]:
        """Yields what happens to a job, up to its end or until `close` is called.

        Args:
            job_id: The job.
            after: The id of the last transition that the listener has seen; 0 begins with the first one.
            permitted: Asked once a minute whether the listener may still hear of the job.
        """
        sender, receiver = anyio.create_memory_object_stream[JobEvent](_QUEUED_EVENTS)
        listener = _Listener(job_id, after, sender)
        self._listeners.add(listener)
        self._awaited.set()
        if self._closed:
            sender.close()
        try:
            asked_at = anyio.current_time()
            while True:
                event = await _received(receiver, until=asked_at + _PERMISSION_PERIOD_S)
                if event is not None:
                    yield event
                    if event.is_last:
                        return
                if anyio.current_time() >= asked_at + _PERMISSION_PERIOD_S:
                    if permitted is not None and not await permitted():
                        return
                    asked_at = anyio.current_time()
        except anyio.EndOfStream:
            return
        finally:
            self._listeners.discard(listener)
            sender.close()
            receiver.close()

    def close(self) -> None:
        """Ends what all listeners hear; each may go on elsewhere after the last transition that it has seen."""
        self._closed = True
        for listener in self._listeners:
            listener.sender.close()
