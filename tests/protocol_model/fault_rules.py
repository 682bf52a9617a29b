"""Rules of faults: workers die and freeze, Redis and Postgres lose their last commits, objects are damaged."""

from protocol_model.explorer import Step
from protocol_model.protocol import (
    Setting,
    Steps,
    each_attempt,
    holds,
    messages,
    title,
    with_attempt,
    with_cancellation,
    with_history,
    with_row,
    with_taken,
    with_waiting,
)
from protocol_model.state import Content, World


def worker_dies(setting: Setting, world: World) -> Steps:
    """A process dies. Redis delivers its message again, unless it was acknowledged, or Redis has lost it."""
    for job, taken in enumerate(world.taken):
        if taken:
            dead = with_taken(world, job, -1)
            yield from _after_death(setting, dead, job, f"a worker dies with a message of {title(job)}")
    for job, attempts in enumerate(world.attempts):
        for number, attempt in enumerate(attempts, 1):
            if attempt.step != "gone":
                dead = with_attempt(world, job, number, step="gone", work=None)
                yield from _after_death(setting, dead, job, f"{title(job, number)} dies")


def _after_death(setting: Setting, dead: World, job: int, label: str) -> Steps:
    if setting.protocol.row_comes_before_acknowledgement:
        yield Step(f"{label}, and its message comes back", with_waiting(dead, job, 1))
    else:
        yield Step(f"{label}, and its message was acknowledged", dead)
    if "redis_fails_over" in setting.scenario.events:
        yield Step(f"{label}, and Redis has lost its message", _without_message(dead, job))


def lease_of_dead_expires(setting: Setting, world: World) -> Steps:
    """The lease of an attempt whose process is gone expires. Time does this, so it is no fault."""
    for job, row in enumerate(world.database.rows):
        if row.state == "running" and not row.expired and world.attempts[job][row.holder - 1].step in ("ended", "gone"):
            yield Step(f"the lease of {title(job, row.holder)} expires", with_row(world, job, expired=True))


def attempt_freezes(setting: Setting, world: World) -> Steps:
    """An attempt freezes until its lease has expired. It thaws by going on."""
    for job, number, _ in each_attempt(world):
        row = world.database.rows[job]
        if holds(row, number) and not row.expired:
            yield Step(f"{title(job, number)} freezes, and its lease expires", with_row(world, job, expired=True))


def redis_fails_over(setting: Setting, world: World) -> Steps:
    """Redis restarts or fails over, and loses what it held of a job's messages."""
    for job, waiting in enumerate(world.waiting):
        if waiting:
            lost = _without_message(with_waiting(world, job, -waiting), job)
            yield Step(f"Redis fails over, and loses the messages of {title(job)}", lost)


def cancellation_is_lost(setting: Setting, world: World) -> Steps:
    """Redis restarts or fails over, and loses a message that cancels a job."""
    for job, waits in enumerate(world.cancellations):
        if waits:
            lost = with_cancellation(world, job, False)
            yield Step(f"Redis fails over, and loses the cancellation of {title(job)}", lost)


def acknowledged_message_returns(setting: Setting, world: World) -> Steps:
    """A failover of Redis loses the last acknowledgement, and the message is delivered again."""
    for job, row in enumerate(world.database.rows):
        over = row.state == "pruned" and setting.protocol.prune_outlasts_messages
        if world.history[job].submitted and not over and messages(world, job) < setting.scenario.max_messages:
            yield Step(f"Redis fails over, and a message of {title(job)} returns", with_waiting(world, job, 1))


def message_vanishes(setting: Setting, world: World) -> Steps:
    """Redis has given a message to a worker that died before the message counted as unacknowledged."""
    for job, waiting in enumerate(world.waiting):
        if waiting:
            lost = _without_message(with_waiting(world, job, -1), job)
            yield Step(f"a message of {title(job)} vanishes between Redis and a worker", lost)


def _without_message(world: World, job: int) -> World:
    """Notes that the only trace of a job is gone."""
    if world.database.rows[job].state == "absent" and not messages(world, job):
        return with_history(world, job, lost=True)
    return world


def object_is_damaged(setting: Setting, world: World) -> Steps:
    """An object of a result is damaged in place, by a faulty disk or a foreign hand."""
    for key, content in world.objects:
        row = world.database.rows[content.job]
        if row.state == "succeeded" and row.result == content.attempt and not content.damaged:
            damaged: Content = content._replace(damaged=True)
            yield Step(
                f"the object of {title(content.job)} is damaged",
                world._replace(objects=world.objects - {(key, content)} | {(key, damaged)}),
            )


def replica_catches_up(setting: Setting, world: World) -> Steps:
    """The standby of Postgres has all commits."""
    if world.replica is not None and world.replica != world.database:
        yield Step("the standby of Postgres has caught up", world._replace(replica=world.database))


def postgres_fails_over(setting: Setting, world: World) -> Steps:
    """The standby takes over, without the last commits. It happens once."""
    if world.replica is not None:
        moved = world._replace(database=world.replica, replica=None)
        for job, row in enumerate(world.replica.rows):
            if row.state == "absent" and world.history[job].submitted:
                moved = with_history(moved, job, lost=True)
        yield Step("Postgres fails over, and loses its last commits", moved)
