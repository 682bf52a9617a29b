"""The rules of the protocol as switches, the scenarios in which they are explored, and what all rules share."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar

from protocol_model.explorer import Step
from protocol_model.state import FINAL, Attempt, JobState, Key, Row, World

Item = TypeVar("Item")
Steps = Iterator[Step[World]]
_PARTS = {"the prefix's": 1, "the job's": 2, "the attempt's": 3}


@dataclass(frozen=True)
class Protocol:
    """The rules of the protocol. Each can be broken, to show that the exploration finds it.

    Attributes:
        attempts_are_fenced: An attempt records its outcome only while its job's row has its lease token.
        row_comes_before_acknowledgement: A message is acknowledged only after its job's row exists.
        creation_keeps_a_row: A message never overwrites a row that exists.
        claim_heeds_limit: A claim, or a sweep, gives a job no attempt beyond the limit.
        losses_are_avoided: A job is kept from the workers that lost it.
        avoidance_needs_another: Only while another worker that has not lost it is alive.
        requeue_heeds_cancellation: A job whose cancellation was requested ends, instead of being queued again.
        sweep_locks_rows: A sweep changes rows that it has locked, not rows that it read earlier.
        sweep_resends: A sweep sends the messages again that Redis has lost.
        keys: Whose own the keys of an attempt's objects are.
        objects_come_before_row: An attempt records its success only after the storage has its objects.
        attempt_is_recorded_before_it_stores: An attempt enters the table of stored attempts before its first object.
        success_clears_record: Success removes the attempt from that table in the same transaction.
        removal_spares_holders: A sweep removes objects only of attempts that do not hold a lease.
        removal: The keys that a sweep removes for an attempt that left the lease.
        removal_outlasts_replica: Objects are removed so late that a standby of Postgres knows that the lease was lost.
        pruned_results_outlast_replica: They are removed so late that a standby knows that their job is pruned.
        reuse_compares_work: Only a result of the same scan, model, manifest and options is reused.
        reuse_verifies: A reused result must have the checksums in the earlier job's row.
        retry_spares_successes: A succeeded job is not queued again on request.
        cancellation_makes_a_row: A message that cancels a job without a row makes one that is cancelled.
        row_comes_before_removal: Such a message is removed only after the job's row is written.
        prune_keeps_unfinished: Only finished jobs are pruned.
        prune_outlasts_messages: A job is pruned only after its messages are over.
    """

    attempts_are_fenced: bool = True
    row_comes_before_acknowledgement: bool = True
    creation_keeps_a_row: bool = True
    claim_heeds_limit: bool = True
    losses_are_avoided: bool = True
    avoidance_needs_another: bool = True
    requeue_heeds_cancellation: bool = True
    sweep_locks_rows: bool = True
    sweep_resends: bool = True
    keys: Literal["the attempt's", "the job's", "the prefix's"] = "the attempt's"
    objects_come_before_row: bool = True
    attempt_is_recorded_before_it_stores: bool = True
    success_clears_record: bool = True
    removal_spares_holders: bool = True
    removal: Literal["the attempt's", "the job's", "the prefix's"] = "the attempt's"
    removal_outlasts_replica: bool = True
    pruned_results_outlast_replica: bool = True
    reuse_compares_work: bool = True
    reuse_verifies: bool = True
    retry_spares_successes: bool = True
    cancellation_makes_a_row: bool = True
    row_comes_before_removal: bool = True
    prune_keeps_unfinished: bool = True
    prune_outlasts_messages: bool = True


@dataclass(frozen=True)
class JobKind:
    """One job of a scenario.

    Attributes:
        work: The scan, model and options. Jobs of the same work have equal results.
        by_client: Whether the Python client submits it, which writes the row before it sends the message.
        readable: Whether its message follows the contract.
        reuse: Whether it may take the result of an earlier job.
    """

    work: str = "scan A"
    by_client: bool = True
    readable: bool = True
    reuse: bool = False


@dataclass(frozen=True)
class Scenario:
    """The size of the modelled service, and the events that happen in it besides the protocol's own.

    Attributes:
        name: The name.
        jobs: The jobs. All ask for the same output prefix.
        events: Names of the rules of clients, operators and faults that happen.
        workers: Number of workers that consume the queue.
        max_attempts: The limit of attempts that count.
        max_messages: Bound of the messages of one job in Redis and in workers' hands.
        max_returns: Bound of the attempts that do not count, because a worker stopped or its machine was at fault.
        is_large: Whether the exploration takes more than a few seconds.
        not_promised: Properties that do not hold here, and that the documentation does not promise.
    """

    name: str
    jobs: tuple[JobKind, ...]
    events: frozenset[str]
    workers: int = 1
    max_attempts: int = 2
    max_messages: int = 2
    max_returns: int = 0
    is_large: bool = False
    not_promised: frozenset[str] = frozenset()

    @property
    def has_replica(self) -> bool:
        """Whether Postgres has a standby."""
        return "postgres_fails_over" in self.events


class Setting(NamedTuple):
    """What a rule works under."""

    protocol: Protocol
    scenario: Scenario


class Change(NamedTuple):
    """A change of a job's state, and the function of `jobs` that makes it."""

    by: str
    before: JobState
    after: JobState


def changes(by: str, *states: JobState) -> tuple[Change, ...]:
    """The changes that lead through a sequence of states."""
    return tuple(Change(by, before, after) for before, after in pairwise(states))


def title(job: int, attempt: int | None = None) -> str:
    """The name of a job in labels, such as A, or of one of its attempts, such as A2."""
    return "ABC"[job] + ("" if attempt is None else str(attempt))


def replaced(items: tuple[Item, ...], index: int, item: Item) -> tuple[Item, ...]:
    """A tuple with one item replaced."""
    return (*items[:index], item, *items[index + 1 :])


def with_row(world: World, job: int, **values: Any) -> World:
    """The world after a write to a job's row."""
    rows = replaced(world.database.rows, job, world.database.rows[job]._replace(**values))
    return world._replace(database=world.database._replace(rows=rows))


def with_state(world: World, job: int, state: JobState, **values: Any) -> World:
    """The world after a change of a job's state, which ends a lease and counts an outcome."""
    values = {"holder": 0, "expired": False, "due": True, "sent": False, **values}
    world = with_row(world, job, state=state, **values)
    if state in FINAL:
        world = with_history(world, job, outcomes=min(2, world.history[job].outcomes + 1))
    return world


def with_history(world: World, job: int, **values: Any) -> World:
    """The world in which something more has happened to a job."""
    return world._replace(history=replaced(world.history, job, world.history[job]._replace(**values)))


def with_attempt(world: World, job: int, number: int, **values: Any) -> World:
    """The world after an attempt's process has gone on."""
    attempt = world.attempts[job][number - 1]._replace(**values)
    return world._replace(attempts=replaced(world.attempts, job, replaced(world.attempts[job], number - 1, attempt)))


def with_waiting(world: World, job: int, more: int) -> World:
    """The world with more, or fewer, messages of a job in Redis."""
    return world._replace(waiting=replaced(world.waiting, job, world.waiting[job] + more))


def with_taken(world: World, job: int, more: int) -> World:
    """The world with more, or fewer, messages of a job that a worker has taken."""
    return world._replace(taken=replaced(world.taken, job, world.taken[job] + more))


def with_cancellation(world: World, job: int, waits: bool) -> World:
    """The world with or without a message in Redis that cancels a job."""
    return world._replace(cancellations=replaced(world.cancellations, job, waits))


def with_stored_attempts(world: World, stored_attempts: frozenset[tuple[int, int]]) -> World:
    """The world with other rows in the table of stored attempts."""
    return world._replace(database=world.database._replace(stored_attempts=stored_attempts))


def messages(world: World, job: int) -> int:
    """The number of a job's messages that are not acknowledged."""
    held = sum(attempt.step != "gone" for attempt in world.attempts[job])
    return world.waiting[job] + world.taken[job] + held


def holds(row: Row, number: int) -> bool:
    """The fence: whether an attempt holds the lease of its job."""
    return row.state == "running" and row.holder == number


def names(row: Row, number: int) -> bool:
    """Whether a row names the objects of an attempt as its job's result."""
    return row.state == "succeeded" and row.result == number


def avoided(setting: Setting, world: World, job: int) -> frozenset[int]:
    """The workers that a job avoids once its running attempt, if there is one, is lost."""
    row = world.database.rows[job]
    if setting.scenario.workers == 1 or not row.holder or not setting.protocol.losses_are_avoided:
        return row.avoided
    return row.avoided | {world.attempts[job][row.holder - 1].worker}


def may_claim(setting: Setting, world: World, job: int, worker: int) -> bool:
    """Whether a worker takes a job; if not, it puts the message back."""
    barred = avoided(setting, world, job)
    others = set(range(setting.scenario.workers)) - barred
    return worker not in barred or (not others and setting.protocol.avoidance_needs_another)


def key(setting: Setting, job: int, number: int) -> Key:
    """The key under which an attempt stores its object."""
    return ("prefix", job, number)[: _PARTS[setting.protocol.keys]]


def removed_keys(setting: Setting, job: int, number: int) -> Key:
    """The start of the keys that a sweep removes for an attempt."""
    return ("prefix", job, number)[: _PARTS[setting.protocol.removal]]


def each_attempt(world: World) -> Iterator[tuple[int, int, Attempt]]:
    """The processes that have not ended: job, number and process."""
    for job, attempts in enumerate(world.attempts):
        for number, attempt in enumerate(attempts, 1):
            if attempt.step not in ("ended", "gone"):
                yield job, number, attempt
