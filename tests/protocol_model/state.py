"""The state of the modelled service: rows, messages, attempts, objects and requests to the storage."""

from typing import Literal, NamedTuple

JobState = Literal["absent", "queued", "running", "succeeded", "failed", "cancelled", "pruned"]
FINAL = ("succeeded", "failed", "cancelled")

Key = tuple[object, ...]
"""The key of an object, part by part."""


class Row(NamedTuple):
    """A job's row in Postgres.

    Attributes:
        state: The job's state; absent and pruned are no rows.
        attempt: Number of the last attempt.
        returned: Number of attempts that do not count.
        holder: The attempt that holds the lease, by its place among all claims of the job; 0 where there is none.
        expired: Whether the lease has expired.
        cancel_requested: Whether the owner asked to cancel the running job.
        due: Whether the next attempt may start.
        sent: Whether a message was sent.
        result: The attempt whose objects are the result; 0 where there is none.
        avoided: Workers that lost the job; not recorded in a scenario with one worker.
    """

    state: JobState = "absent"
    attempt: int = 0
    returned: int = 0
    holder: int = 0
    expired: bool = False
    cancel_requested: bool = False
    due: bool = True
    sent: bool = False
    result: int = 0
    avoided: frozenset[int] = frozenset()


class Attempt(NamedTuple):
    """A process that runs one attempt. It knows only what it has read.

    Attributes:
        step: What it has done last. An ended attempt has not acknowledged its message yet; a gone one has, or died.
        work: The scan and model of its result; None before the result is there.
        worker: The worker that it belongs to.
    """

    step: Literal["claimed", "computed", "recorded", "sent", "stored", "ended", "gone"] = "claimed"
    work: str | None = None
    worker: int = 0


class Content(NamedTuple):
    """The content of an object: who stored it, from which scan and model, and whether it was damaged in place."""

    job: int
    attempt: int
    work: str
    damaged: bool = False


class Request(NamedTuple):
    """A request that was sent to the storage, which may apply it at any time, and more than once.

    Attributes:
        job: The job for which it was sent.
        key: The key of a PUT. A DELETE removes all keys that start with it.
        content: The content of a PUT; None for a DELETE.
    """

    job: int
    key: Key
    content: Content | None


class Database(NamedTuple):
    """Postgres: the rows of the jobs, and the table of attempts that may have stored objects (job, attempt)."""

    rows: tuple[Row, ...]
    stored_attempts: frozenset[tuple[int, int]] = frozenset()


class History(NamedTuple):
    """What happened to one job. Only the properties read it; no part of the service knows it.

    Attributes:
        submitted: Whether its owner has sent it.
        outcomes: Number of outcomes that were recorded, at most 2; a retry on request takes one back.
        retried: Whether its owner has asked to queue it again after its end.
        lost: Whether its message was lost before any worker had recorded the job.
        cancellation_sent: Whether an upstream has sent a message that cancels it.
        cancelled: Whether a sweep has removed that message, which takes effect from then on.
        started_after_cancel: Whether an attempt was claimed after a cancellation was requested.
        removed_by_another: Whether an object of it was removed on behalf of another job.
    """

    submitted: bool = False
    outcomes: int = 0
    retried: bool = False
    lost: bool = False
    cancellation_sent: bool = False
    cancelled: bool = False
    started_after_cancel: bool = False
    removed_by_another: bool = False


class World(NamedTuple):
    """The state of the whole service.

    Attributes:
        database: Postgres.
        replica: The standby of Postgres that would take over; None where there is none.
        waiting: For each job, the number of its messages that wait in Redis.
        taken: For each job, the number of its messages that a worker has taken and not handled yet.
        cancellations: For each job, whether a message that cancels it waits in Redis.
        attempts: For each job, the process of each claim, the first claim first.
        objects: The object storage.
        requests: All requests that were sent to it.
        history: For each job.
    """

    database: Database
    replica: Database | None
    waiting: tuple[int, ...]
    taken: tuple[int, ...]
    cancellations: tuple[bool, ...]
    attempts: tuple[tuple[Attempt, ...], ...]
    objects: frozenset[tuple[Key, Content]]
    requests: frozenset[Request]
    history: tuple[History, ...]
